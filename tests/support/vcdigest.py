# SPDX-License-Identifier: LGPL-2.1-or-later
"""The digests of docs/internals/digest.md once more, through another library."""
import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ZERO_DIGEST = bytes(16)


def hkdf_sha256(key, info, length):
    """RFC 5869 without a salt."""
    prk = hmac.digest(bytes(32), key, "sha256")
    out = block = b""
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out[:length]


class Digest:
    """D(m) for one purpose, "page" or "seal"."""

    def __init__(self, master, purpose):
        keys = hkdf_sha256(master, b"vecycle v1 gmac " + purpose.encode(), 32)
        self.gcm = AESGCM(keys[:16])
        self.aes = Cipher(algorithms.AES(keys[16:]), modes.ECB()).encryptor()

    def __call__(self, message):
        tag = self.gcm.encrypt(bytes(12), b"", bytes(message))
        return self.aes.update(tag)


class PageDigest(Digest):
    """As the seal and the index have it: a page of zeroes is 16 zero bytes."""

    def __init__(self, master):
        super().__init__(master, "page")

    def __call__(self, page):
        return ZERO_DIGEST if page.count(0) == len(page) else super().__call__(page)
