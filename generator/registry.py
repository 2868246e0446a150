"""Who is registered by a name: the project's own, those of installed packages, and those of the running program."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


class Registry(Generic[T]):
    """Values by name; what comes from a package is imported when it is asked for.

    Args:
        kind: What a value is called in errors.
        group: The group of entry points in which packages name theirs.
        built_in: The project's own, as entry points have them: `module:attribute`.
    """

    def __init__(self, kind: str, *, group: str, built_in: Mapping[str, str]) -> None:
        self._kind, self._group, self._built_in = kind, group, built_in
        self._known: dict[str, T] = {}

    def register(self, name: str, value: T) -> None:
        """Make `value` known by `name`; a later one takes the place of an earlier one."""
        self._known[name] = value

    def check(self, name: str) -> None:
        """Do nothing if there is a value of this name; it is not imported.

        Raises:
            LookupError: There is none; names those that there are.
        """
        if name not in self._known and name not in self._built_in and name not in self.names():
            msg = f"there is no {self._kind} {name!r}; known are {', '.join(self.names())}"
            raise LookupError(msg)

    def find(self, name: str) -> T:
        """Return the value of this name.

        Raises:
            LookupError: There is none; names those that there are.
        """
        if name not in self._known:
            self.check(name)
            value = self._built_in.get(name)
            entries = entry_points(group=self._group, name=name)
            entry = next(iter(entries)) if value is None else EntryPoint(name=name, value=value, group=self._group)
            self._known[name] = cast("T", entry.load())
        return self._known[name]

    def loaded(self) -> list[T]:
        """Return the values that were asked for or registered so far."""
        return list(self._known.values())

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted({*self._built_in, *self._known, *(entry.name for entry in entry_points(group=self._group))})
