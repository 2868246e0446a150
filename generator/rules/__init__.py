"""The table of rules: one for what the files show, for the words in a log, and for the documentation."""

from __future__ import annotations

from generator.rules import config, host, layout, network_files, python_models
from generator.rules.rule import Rule

# The first rule whose words are found decides, so what is special stands before what is general.
RULES: tuple[Rule, ...] = (
    # first, since its words repeat those of the member
    Rule(
        id="ensemble-member-failed",
        says=r"depends on '(?P<member>[^']+)' which has no loaded version",
        cause="its member {member} did not load",
        fix="repair {member} first",
    ),
    *layout.RULES,
    *host.DEVICES,
    *python_models.RULES,
    *network_files.RULES,
    *config.AGAINST_NETWORK,
    *config.ENSEMBLES,
    *config.BROKEN_RULES,
    *host.PORTS,
    *python_models.OWN_WORDS,
)
