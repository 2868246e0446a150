"""Folders, files and versions."""

from generator.rules.rule import EDIT, FILES, Rule

RULES = (
    Rule(
        id="layout-no-config",
        says=r"failed to open text file for read (?P<folder>.*/(?P<name>[^/]+))/config\.pbtxt",
        cause="the folder {name} in the repository's root is not a model: it has no config.pbtxt (a leftover?)",
        fix="remove it or move it elsewhere: {folder}",
        seen_in=FILES,
    ),
    Rule(
        id="layout-named-file-missing",
        says=r"failed to open text file for read (?P<path>.+?)(: No such|$)",
        cause="a file that config.pbtxt names is missing: {path}",
        fix="put the file there, or correct {model}/config.pbtxt",
        build="rebuild",
        seen_in=FILES,
    ),
    Rule(
        id="layout-no-version",
        says=r"(?P<detail>version \d+ is specified for model.*|at least one version must be available.*)",
        cause="it has no version directory that its version_policy takes: {detail}",
        fix="change version_policy in {model}/config.pbtxt, or add a folder whose name is the version, such as 1",
        build="rebuild",
        seen_in=FILES,
    ),
    Rule(
        id="layout-other-name",
        says=r"unexpected directory name '(?P<folder>[^']+)' for model '(?P<name>[^']+)'",
        cause="its directory is called {folder}, but config.pbtxt says the name is {name}",
        fix="rename the directory to {name}, or correct `name` in {folder}/config.pbtxt",
        seen_in=FILES,
    ),
    Rule(
        id="config-syntax",
        says=r"failed to read text proto from (?P<path>.+?/config\.pbtxt)(?: \((?P<detail>.*)\))?",
        cause="its config.pbtxt cannot be read: {detail}",
        fix=EDIT,
        build="rewrite",
        seen_in=FILES,
    ),
    Rule(
        id="layout-no-model-file",
        says=r"(Python model file not found in|unable to find) '(?P<path>.+?)'( for model|$)",
        cause="its file is missing: {path}",
        fix="put it there, or name the file that is there in default_model_filename",
        build="rebuild",
        seen_in=FILES,
    ),
    Rule(
        id="layout-unreadable",
        says=r"unable to read '(?P<path>.+?)': (?P<detail>.*)",
        cause="its file cannot be read ({detail}): {path}",
        fix="let the user that runs the server read {path}",
        seen_in=FILES,
    ),
)
