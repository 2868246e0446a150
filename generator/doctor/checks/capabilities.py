"""Plans for several compute capabilities: whether each is there, is for its own, and fits the one configuration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from generator.doctor.checks.plan import find_passport
from generator.doctor.finding import Finding, at_path, in_config
from generator.doctor.repository import is_file, is_missing
from generator.plan.choice import PLAN_FILE, sort_capabilities
from generator.plan.compatibility import runs_on
from generator.triton.fused import NETWORK_BACKEND

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from generator.doctor.repository import ConfiguredModel
    from generator.plan.passport import Passport

_FIELD = "cc_model_filenames"
_CAPABILITY = re.compile(r"[1-9]\d*\.\d")


def check_capabilities(model: ConfiguredModel, backend: str, *, gpu: str | None) -> Iterator[Finding]:
    """Check what a configuration says of them; `gpu` is the server's compute capability, None where it is not known."""
    named = dict(model.config.cc_model_filenames)
    own = model.config.parameters
    is_fused = backend == "python" and NETWORK_BACKEND in own and own[NETWORK_BACKEND].string_value == "tensorrt"
    if not named or not (backend == "tensorrt" or is_fused):
        return
    for key in named:
        if not _CAPABILITY.fullmatch(key):
            yield in_config(model, "plan-capability-key", _FIELD, key=key)
    default = PLAN_FILE if is_fused else model.config.default_model_filename or PLAN_FILE
    for version in model.served_versions:
        yield from _check_version(model, model.path / str(version), named, default, gpu)


def _check_version(
    model: ConfiguredModel, folder: Path, named: dict[str, str], default: str, gpu: str | None
) -> Iterator[Finding]:
    capabilities = sort_capabilities(named)
    passports: dict[str, Passport] = {}
    for capability in capabilities:
        plan = folder / named[capability]
        if is_missing(plan):
            yield in_config(model, "plan-capability-missing", _FIELD, capability=capability, path=plan)
        elif passport := find_passport(plan):
            passports[plan.name] = passport
            if not runs_on(passport, capability):
                built = passport.gpu["compute_capability"]
                yield at_path(model, "plan-capability-other", plan, path=plan, made=built, capability=capability)
    listed = ", ".join(capabilities)
    plan = folder / default
    if is_file(plan):
        passport = find_passport(plan)
        if passport is None or passport.hardware_compatibility != "ampere-plus":
            yield at_path(model, "plan-capability-default", plan, path=plan, capabilities=listed)
        if passport is not None:
            passports[plan.name] = passport
    elif gpu is not None and gpu not in named:
        yield in_config(model, "plan-capability-none", _FIELD, gpu=gpu, capabilities=listed)
    yield from _compare(model, folder, passports)


def _compare(model: ConfiguredModel, folder: Path, passports: dict[str, Passport]) -> Iterator[Finding]:
    """Find plans that one configuration cannot be right for: it states profiles, dims and max_batch_size once."""
    names = list(passports)
    for name in names[1:]:
        one, other = passports[names[0]], passports[name]
        pairs = {
            "optimization profiles": (one.profiles, other.profiles),
            "inputs": (one.inputs, other.inputs),
            "outputs": (one.outputs, other.outputs),
        }
        if what := [word for word, (first, second) in pairs.items() if first != second]:
            values = {"one": names[0], "other": name, "what": " and ".join(what)}
            yield at_path(model, "plan-capability-differs", folder / name, **values)
