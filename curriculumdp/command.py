"""What every command shares: a bad input ends in one clear line and exit status 2, a fault of ours in a traceback.

Standard library alone, so that `--help` and a bad command line are answered at once.
"""

import argparse
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from curriculumdp.errors import UserError
from curriculumdp.printable import printable

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
NO_READER = 141  # 128 + SIGPIPE
# What the machine, not the program, got wrong.
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
# These tell of the disk even where the system names no file, as when one that is open cannot grow.
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class Parser(argparse.ArgumentParser):
    """A command line whose faults are told as those of any other input are: in one line."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        _stop(f"{message}; see {self.prog} --help")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns errors that this package raises about its input into `error: …` on stderr and exit status 2.

    Ctrl-C ends in a line too, and exit status 130. Where nobody reads standard output any more (`| head`) it ends
    without a word, and exit status 141.
    """
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        _stop(str(error))
    except BrokenPipeError:
        # What is left in the buffer would be written, and fail, while Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NO_READER)
    except OSError as error:
        if error.errno not in (MACHINE_FAULTS if error.filename is not None else DISK_FAULTS):
            raise
        where = "the disk" if error.filename is None else error.filename
        _stop(f"{where}: {error.strerror}: nothing is lost; mend it and run the same command again")
    except KeyboardInterrupt:
        _stop("interrupted: nothing is lost; run the same command again to go on", INTERRUPTED)


def _stop(message: str, status: int = BAD_INPUT) -> NoReturn:
    print("error: " + " ".join(printable(message).split()), file=sys.stderr, flush=True)
    sys.exit(status)
