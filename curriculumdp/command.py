"""What every command shares: user errors print one line and exit 2; bugs raise a traceback.

Messages name other commands as launch/NAME.py; `as_typed_here` puts them as the user can type them.

It imports only the standard library, so `--help` and command-line errors answer at once.
"""

import argparse
import errno
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from curriculumdp.errors import UserError
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
}
# Errors of the disk even when the system names no file, as when an open file cannot grow.
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# Which extra of pyproject.toml brings a module that only some commands need.
EXTRAS = {
    "matplotlib": "report",
    "tensorboard": "tensorboard",
    "huggingface_hub": "hub",
    "pydicom": "dicom",
    **dict.fromkeys(
        ("torch", "triton", "accelerate", "diffusers", "opacus", "PIL", "kornia", "sklearn", "tqdm"), "train"
    ),
}


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors like those of any other input: in one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=as_typed_here(description or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        _stop(f"{message}; see {self.prog} --help")


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
    except UserError as error:
        _stop(str(error))
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        _stop(
            f"{module} is not installed: in a checkout of curriculumdp, run pip install '.[{EXTRAS[module]}]'"
        )
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
    """Return `text` with each command that it names as launch/NAME.py put as it can be typed here."""
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


def _near(path: Path) -> str:
    """Return the shortest way to name a file here: as the shell finds it, below the working directory, or in full."""
    if shutil.which(path.name) == str(path):
        return path.name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _stop(message: str, status: int = BAD_INPUT) -> NoReturn:
    print("error: " + " ".join(printable(as_typed_here(message)).split()), file=sys.stderr, flush=True)
    sys.exit(status)
