"""python launch/verify.py RELEASE [--signer PUB]: holds a release against its own certificate.

Recomputes ε from the certificate's releases by two libraries, checks every file's hash, and the signature.
Exit status: 0 all of it holds, 1 it does not (a line for each reason), 2 a bad input.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", type=Path, help="the folder of a release")
    parser.add_argument(
        "--signer", type=Path, metavar="PUB", help="Ed25519 public key (PEM) of who must have made it"
    )
    asked = parser.parse_args()

    from curriculumdp.command import one_line_errors

    with one_line_errors():
        from curriculumdp.verify import read_certificate, verify_release

        problems = verify_release(asked.release, asked.signer)
        for problem in problems:
            print(f"WRONG: {problem}")
        if problems:
            return 1
        certificate = read_certificate(asked.release)
        said, cost = certificate.guarantee, certificate.accounting
        print(f"files: {len(certificate.files)}, each as certified")
        print(f"promised: ε = {said.epsilon:.6g} at δ = {said.delta:g}, zero-out; a unit is {said.unit}")
        print(f"cost, recomputed: PLD {cost.epsilon_of_releases:.6g}, Opacus RDP {cost.opacus_rdp:.6g}")
        if cost.opacus_prv is not None:
            print(
                "and by Opacus PRV: {:.4g} (from {:.4g} to {:.4g})".format(
                    *(cost.opacus_prv[i] for i in (1, 0, 2))
                )
            )
        print(
            f"stopped: {said.stopped}; private figures shown: {'yes' if said.private_metrics_shown else 'no'}"
        )
        print(f"origin: signed by {asked.signer}" if asked.signer else "origin not proved: give --signer PUB")
        return 0


if __name__ == "__main__":
    sys.exit(main())
