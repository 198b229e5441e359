"""Who made a release: an Ed25519 signature of the certificate's bytes, and thereby of every file."""

import base64
import binascii
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from curriculumdp.errors import UserError

MAKE_KEY = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"
MAKE_PUBLIC = "extract it from the private key with: openssl pkey -in key.pem -pubout -out key.pub"

MAX_KEY = 100_000  # bytes read of a key file


class SignatureError(UserError):
    """An unusable key; the message is one line and never shows the key."""


def sign(content: bytes, private_key: Path) -> bytes:
    """Sign `content` with the Ed25519 key in a PEM file and return a line of base64. Raises SignatureError."""
    pem = _read(private_key)
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise SignatureError(f"{private_key} is encrypted: decrypt it first (openssl pkey)") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError(f"{private_key} is not a private key in PEM: {MAKE_KEY}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{private_key} is not an Ed25519 key: {MAKE_KEY}")
    return _line(key.sign(content))


def load_signer(public_key: Path) -> Ed25519PublicKey:
    """Load the Ed25519 public key in a PEM file. Raises SignatureError."""
    pem = _read(public_key)
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError(f"{public_key} is not a public key in PEM: {MAKE_PUBLIC}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{public_key} is not an Ed25519 key: {MAKE_PUBLIC}")
    return key


def is_signed(content: bytes, signature: bytes, signer: Ed25519PublicKey) -> bool:
    """Return whether `signature` is, byte for byte, what `sign` writes for `content` with the signer's key."""
    try:
        raw = base64.b64decode(signature.removesuffix(b"\n"), validate=True)
        signer.verify(raw, content)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return signature == _line(raw)  # several base64 texts decode to the same bytes


def _line(signature: bytes) -> bytes:
    return base64.b64encode(signature) + b"\n"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEY)
    except OSError as error:
        raise SignatureError(f"{path}: {error.strerror}: give a key in a PEM file") from None
    if not content.strip():
        raise SignatureError(f"{path}: the file is empty: give a key in a PEM file")
    return content
