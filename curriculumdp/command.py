"""What every command shares: user errors print one line and exit 2; bugs raise a traceback.

Messages name other commands as launch/NAME.py, and extras as in `pip install 'curriculumdp[NAME]'`; `as_typed_here`
puts both as the user can type them.

It imports only the standard library, so `--help` and command-line errors answer at once.
"""

import argparse
import errno
import io
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from curriculumdp.errors import StoppedByMain, UserError
from curriculumdp.printable import printable

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as in shells
NO_READER = 141  # 128 + SIGPIPE
# Errors of the machine, not of the program.
MACHINE_FAULTS = {
    errno.ENOSPC,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}
# Errors of the disk even when the system names no file, as when an open file cannot grow.
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# Which extra of pyproject.toml brings a module that only some commands need.
EXTRAS = {
    "matplotlib": "report",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "huggingface_hub": "hub",
    "pydicom": "dicom",
    **dict.fromkeys(
        ("torch", "triton", "accelerate", "diffusers", "opacus", "PIL", "kornia", "sklearn", "tqdm"), "train"
    ),
}


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors like those of any other input: in one line; `~` in a path is the home."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=as_typed_here(description or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.register("type", Path, _at_home)

    def error(self, message: str) -> NoReturn:
        _stop(f"{message}; see {self.prog} --help")


def _at_home(text: str) -> Path:
    """Return a path; shells leave the `~` of `--out=~/it` to the program."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text}: there is no such user: give the whole path") from None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn user errors, and errors of the machine, into one line `error: …` on stderr and exit status 2.

    Ctrl-C prints one line and exits with 130. A closed standard output (`| head`) exits silently with 141. Letters that
    the console's encoding lacks are printed as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except StoppedByMain:
        sys.exit(BAD_INPUT)
    except UserError as error:
        _stop(str(error))
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        _stop(f"{module} is not installed: run pip install 'curriculumdp[{EXTRAS[module]}]'")
    except BrokenPipeError:
        # Otherwise Python would flush the rest of the buffer at shutdown, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NO_READER)
    except OSError as error:
        if error.errno not in (MACHINE_FAULTS if error.filename is not None else DISK_FAULTS):
            raise
        where = "disk" if error.filename is None else error.filename
        _stop(f"{where}: {error.strerror}: nothing is lost; fix this and run the same command again")
    except KeyboardInterrupt:
        _stop("interrupted: nothing is lost; run the same command again to resume", INTERRUPTED)


def as_typed_here(text: str) -> str:
    """Return `text` with each command that it names as launch/NAME.py, and each extra, put as it can be typed here."""
    text = re.sub(r"pip install 'curriculumdp\[(\w+)\]'", lambda found: installation(found[1]), text)
    return re.sub(r"(?<![\w./-])launch/([a-z]+)\.py\b", lambda found: invocation(found[1]), text)


def invocation(name: str) -> str:
    """Return the words that start command `name` with this interpreter: from a checkout, its file in launch/."""
    python = Path(sys.executable)
    launcher = Path(__file__).parents[1] / "launch" / f"{name}.py"
    if launcher.is_file():
        return shlex.join([_near(python), _near(launcher)])
    script = python.with_name(f"curriculumdp-{name}")
    if script.is_file():
        return shlex.quote(_near(script))
    return shlex.join([_near(python), "-m", f"curriculumdp.commands.{name}"])


def installation(extra: str) -> str:
    """Return the words that install an extra for this interpreter: from a checkout, its own."""
    root = Path(__file__).parents[1]
    package = (
        ["-e", f"{_near(root)}[{extra}]"]
        if (root / "pyproject.toml").is_file()
        else [f"curriculumdp[{extra}]"]
    )
    return shlex.join([_near(Path(sys.executable)), "-m", "pip", "install", *package])


def _near(path: Path) -> str:
    """Return the shortest way to name a file here: as the shell finds it, below the working directory, or in full."""
    if shutil.which(path.name) == str(path):
        return path.name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def exit_status_in(file: Path | None) -> Iterator[Callable[[int], None]]:
    """Yield what records an exit status in `file`, and record with which status the block is left.

    Launchers exit with a status of their own, so a job script cannot see it otherwise. Only the main process writes;
    what an earlier command left is removed first, and the file is complete or missing at any moment.
    """
    file = file if os.environ.get("RANK", "0") == "0" else None
    record = partial(_record_status, file)
    if file is not None:
        if not file.absolute().parent.is_dir() or file.is_dir():
            _stop(f"--exit-status {file}: give a file in a folder that exists")
        file.unlink(missing_ok=True)
    try:
        yield record
    except SystemExit as ended:
        record(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise
    except BaseException:
        record(1)
        raise


def _record_status(file: Path | None, status: int) -> None:
    if file is None:
        return
    whole = file.with_name(f".{file.name}.unfinished")
    try:
        whole.write_text(f"{status}\n", encoding="utf-8")
        whole.replace(file)
    except OSError as error:  # the command has ended as it has, whether or not that can be written down
        print(f"warning: --exit-status {file}: {error.strerror}", file=sys.stderr, flush=True)


def _stop(message: str, status: int = BAD_INPUT) -> NoReturn:
    line = "error: " + " ".join(printable(as_typed_here(message)).split())
    print(line, file=sys.stderr, flush=True)
    _tell_launcher(line)
    sys.exit(status)


def _tell_launcher(line: str) -> None:
    """Give torchrun the line for its own last words, a table under a traceback."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        said = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": said}), encoding="utf-8")
