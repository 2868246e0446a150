"""The table of rules: one for what the files show, for the words in a log, and for the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.rules import config, ensembles, host, layout, network_files, python_models, scheduling, tensors

if TYPE_CHECKING:
    from generator.rules.rule import Rule

# The first rule whose words are found decides, so what is special stands before what is general.
RULES: tuple[Rule, ...] = (
    # first, since their words repeat those of a member
    *ensembles.RULES,
    *layout.RULES,
    *host.DEVICES,
    *python_models.RULES,
    *network_files.RULES,
    *config.AGAINST_NETWORK,
    *tensors.RULES,
    *scheduling.RULES,
    *config.BROKEN_RULES,
    *host.PORTS,
    *host.DISAGREEMENTS,
    *python_models.OWN_WORDS,
    *python_models.UNKNOWN,
)
BY_ID: dict[str, Rule] = {rule.id: rule for rule in RULES}
