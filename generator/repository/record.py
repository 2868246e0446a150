"""trtgen.json: what a published model was made from, with what, what was proved, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - pydantic reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, TypeAdapter
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from generator.errors import RepositoryError
from generator.plan.choice import PLAN_FILE
from generator.repository.layout import RECORD_FILE
from generator.spec.recipe import Recipe  # noqa: TC001 - pydantic reads the annotations
from generator.spec.records import JsonRecord

if TYPE_CHECKING:
    from pathlib import Path


# What readers of a record rely on. The rest of these objects is not looked at, and older ones have less of it.
class _Spec(TypedDict):
    source: str
    activation: str
    precision: str
    versions: Literal["all"] | PositiveInt | list[PositiveInt]


class _Inputs(TypedDict):
    artifact: str
    configuration: str


class _Contract(TypedDict):
    backend: str


class _Proof(TypedDict):
    stage: str
    status: Literal["proved", "not proved", "assumed"]


class _MergedPlan(TypedDict):
    compute_capability: str
    gpu: str
    repository: str
    proof: list[_Proof]


def _having(keys: type) -> AfterValidator:
    """Return the check that an object has these keys; it stays as it is, with all its keys in their order."""
    adapter: TypeAdapter[Any] = TypeAdapter(keys)

    def check(value: Mapping[str, Any]) -> Mapping[str, Any]:
        adapter.validate_python(value)
        return value

    return AfterValidator(check)


class Record(JsonRecord):
    """The content of trtgen.json.

    `inputs` holds two fingerprints: `artifact` of everything the graph and the plan follow from, `configuration` of
    everything else. `plan` says where the plan runs, None without one; `plans`, of a merged model, of each by its file
    which build it is of, and what was proved of that. `contract` is what clients and older versions rely on. `files`
    maps paths in the repository to SHA-256. `head`, `assumed` and `repairs` are those of `Artifact`;
    older records have no `head` and no `repairs`.
    """

    made_by: str
    command: str
    name: str
    version: PositiveInt
    description: str
    spec: Annotated[Mapping[str, Any], _having(_Spec)]
    inputs: Annotated[Mapping[str, str], _having(_Inputs)]
    packages: Mapping[str, str]
    recipe: Recipe
    contract: Annotated[Mapping[str, Any], _having(_Contract)]
    graph: Mapping[str, Any]
    proof: list[Annotated[Mapping[str, Any], _having(_Proof)]]
    files: Mapping[str, str]
    plan: Mapping[str, Any] | None = None
    head: Mapping[str, Any] | None = None
    assumed: Mapping[str, str] = Field(default_factory=dict)
    repairs: list[str] = Field(default_factory=list)
    plans: Mapping[str, Annotated[Mapping[str, Any], _having(_MergedPlan)]] = Field(default_factory=dict)
    format: Literal[1] = 1

    @property
    def for_capability(self) -> dict[str, str]:
        """The plans of a merged model by the compute capability that each is for, but for the default one."""
        return {str(one["compute_capability"]): name for name, one in self.plans.items() if name != PLAN_FILE}


def read_record(root: Path, name: str) -> Record | None:
    """Return the record of the model `name`, or None where there is no such model.

    Raises:
        RepositoryError: The directory exists but was not made by trtgen, or its record cannot be read.
    """
    directory = root / name
    path = directory / RECORD_FILE
    if not directory.exists():
        return None
    if not path.is_file():
        msg = f"{directory} exists, but has no {RECORD_FILE}: trtgen did not make it and does not touch it"
        raise RepositoryError(msg, hint="give the model another name, or move that directory away")
    try:
        return Record.read(path)
    except ValueError as error:
        msg = f"{path} cannot be read: {error}"
        raise RepositoryError(msg, hint=_how_to_rebuild(directory)) from error


def _how_to_rebuild(directory: Path) -> str:
    return f"move {directory} and its members (directories that begin with its name) away and build it again"


def find_records(root: Path) -> list[Record]:
    """Return the records of all models made by trtgen below `root`, by name."""
    if not root.is_dir():
        return []
    names = sorted(entry.name for entry in root.iterdir() if (entry / RECORD_FILE).is_file())
    return [record for name in names if (record := read_record(root, name)) is not None]
