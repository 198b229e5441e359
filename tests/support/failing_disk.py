"""Every change that a process makes to a folder, one after the other: to look at, to break, to stop at.

The functions through which Python changes files are wrapped while a `Disk` is entered; each call on a path
below its folder is one operation. Files that native code writes (safetensors) count as one write.
"""

import builtins
import fcntl
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from curriculumdp import checkpoint

ON_PATHS = ("open", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "chmod")
ON_DESCRIPTORS = ("write", "pwrite", "fsync", "fdatasync", "ftruncate")
CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Written once and never again in place: copies of a folder may share them.
IMMUTABLE = ("state.safetensors", "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Operation:
    """`number` counts from 1; a write puts `content()` at `offset` of the file."""

    number: int
    name: str
    path: Path
    content: Callable[[], bytes] = bytes
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.name} number {self.number}, {self.path.name}"

    def tear(self, path: Path, share: float) -> None:
        """Does only the first part of a write, in `path`."""
        content = self.content()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, content[: max(1, int(len(content) * share))], self.offset)
        finally:
            os.close(descriptor)


class Disk:
    """`before(operation)` is called ahead of each change below `folder`; what it raises, the caller gets."""

    def __init__(self, folder: Path, before: Callable[[Operation], None]) -> None:
        self.folder, self._before = folder.resolve(), before
        self.number = 0
        self._quiet = False
        self.durable = Durable(self.folder)

    def __enter__(self) -> "Disk":
        self._patch = pytest.MonkeyPatch()
        for name in ON_PATHS:
            self._patch.setattr(os, name, self._on_path(name, getattr(os, name)))
        for name in ON_DESCRIPTORS:
            self._patch.setattr(os, name, self._on_descriptor(name, getattr(os, name)))
        opened = self._on_open(io.open)
        self._patch.setattr(io, "open", opened)
        self._patch.setattr(builtins, "open", opened)
        saved = self._on_save(safetensors.torch.save_file)
        self._patch.setattr(safetensors.torch, "save_file", saved)
        self._patch.setattr(checkpoint, "save_file", saved)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What is done in here is no operation."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _announce(self, *facts: Any) -> None:
        self.number += 1
        with self.quiet():
            self._before(Operation(self.number, *facts))

    def _below(self, path: object, dir_fd: int | None = None) -> Path | None:
        """`path` if it is one of the folder's and the operation counts."""
        if self._quiet or isinstance(path, int) or path is None:
            return None
        text = os.fsdecode(path)  # type: ignore[arg-type]
        whole = (
            Path(os.readlink(f"/proc/self/fd/{dir_fd}")) / text
            if dir_fd is not None
            else Path(text).absolute()
        )
        return whole if whole.is_relative_to(self.folder) else None

    def _of(self, descriptor: int) -> Path | None:
        if self._quiet:
            return None
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return path if path.is_relative_to(self.folder) else None

    def _on_path(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            dir_fd = kwargs.get("dir_fd", kwargs.get("src_dir_fd"))
            counted = self._below(path, dir_fd)
            if counted is None or (name == "open" and not (args and args[0] & CHANGES)):
                return original(path, *args, **kwargs)
            created = name in ("open", "mkdir") and not os.path.lexists(counted)
            self._announce(name, counted)
            result = original(path, *args, **kwargs)
            if created:
                self.durable.created(counted)
            return result

        return call

    def _on_descriptor(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: Any, *args: Any, **kwargs: Any) -> Any:
            counted = self._of(descriptor)
            if counted is None:
                return original(descriptor, *args, **kwargs)
            if name in ("write", "pwrite"):
                content = bytes(args[0])
                offset = args[1] if name == "pwrite" else _offset(descriptor)
                self._announce(name, counted, lambda: content, offset)
            else:
                self._announce(name, counted)
            result = original(descriptor, *args, **kwargs)
            if name in ("fsync", "fdatasync"):
                with self.quiet():
                    self.durable.synced(counted)
            return result

        return call

    def _on_open(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            changes = any(letter in mode for letter in "wax+")
            if isinstance(file, int):
                counted = self._of(file) if changes else None
                made = False
            else:
                counted = self._below(file) if changes else None
                made = counted is not None and not os.path.lexists(counted)
                if counted is not None:
                    self._announce("open", counted)
            opened = original(file, mode, *args, **kwargs)
            if counted is None:
                return opened
            if made:
                self.durable.created(counted)
            return WatchedFile(opened, lambda *facts: self._announce("write", counted, *facts))

        return call

    def _on_save(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> Any:
            counted = self._below(filename)
            if counted is None:
                return original(tensors, filename, *args, **kwargs)

            self._announce("write", counted, lambda: safetensors.torch.save(tensors))
            result = original(tensors, filename, *args, **kwargs)
            self.durable.created(counted)
            return result

        return call


class WatchedFile:
    """A file whose writes are announced, and reach the kernel at once."""

    def __init__(self, file: Any, announce: Callable[..., None]) -> None:
        self._file, self._announce = file, announce

    def write(self, content: Any) -> int:
        encoded = content.encode() if isinstance(content, str) else bytes(content)
        self._announce(lambda: encoded, _offset(self._file.fileno()))
        written = self._file.write(content)
        self._file.flush()
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "WatchedFile":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


def _offset(descriptor: int) -> int:
    """Where the next write goes."""
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
        return os.fstat(descriptor).st_size
    return os.lseek(descriptor, 0, os.SEEK_CUR)


class Durable:
    """What a power cut leaves of a folder: contents as last synced, names as their folder was last synced.

    The strictest disk that POSIX allows: nothing that was not synced is there. A node is a file's bytes or a
    folder's names; it belongs to an inode until another file is made with that inode.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._nodes: dict[int, dict[str, Any]] = {}

    def created(self, path: Path) -> None:
        held: dict[str, Any] = {"names": {}} if path.is_dir() else {"content": b""}
        self._nodes[path.stat().st_ino] = held | {"mode": path.stat().st_mode}

    def synced(self, path: Path) -> None:
        node = self._node(path)
        if path.is_dir():
            node["names"] = {entry.name: self._node(entry) for entry in path.iterdir()}
        else:
            node["content"] = path.read_bytes()
        node["mode"] = path.stat().st_mode

    def _node(self, path: Path) -> dict[str, Any]:
        state = path.stat()
        fresh: dict[str, Any] = {"names": {}} if path.is_dir() else {"content": b""}
        node = self._nodes.get(state.st_ino)
        if node is None or ("names" in node) != path.is_dir():
            node = self._nodes[state.st_ino] = fresh | {"mode": state.st_mode}
        return node

    def write(self, target: Path) -> None:
        """Makes `target` what a power cut would leave. The watched folder itself counts as synced."""
        self.synced_root()
        _write_node(target, self._node(self.folder))

    def synced_root(self) -> None:
        self._node(self.folder)["names"] = {e.name: self._node(e) for e in self.folder.iterdir()}


def _write_node(path: Path, node: dict[str, Any]) -> None:
    if "names" in node:
        path.mkdir()
        for name, inner in node["names"].items():
            _write_node(path / name, inner)
    else:
        path.write_bytes(node["content"])
    path.chmod(node["mode"] & 0o777)


def copy_folder(source: Path, target: Path) -> Path:
    """A copy of a run's folder that shares what is never changed in place."""

    def copy(one: str, other: str) -> None:
        if os.path.basename(one) in IMMUTABLE:
            _share(one, other)
        else:
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=copy)
    return target


def _share(one: str, other: str) -> None:
    try:
        os.link(one, other)
    except OSError:  # another file system
        shutil.copy2(one, other)
