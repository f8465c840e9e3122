"""Small integers in few bits: what makes a cached distribution small.

Shape legend: N tokens, K numbers a token.

A set of K token ids is written sorted, in Elias-Fano code: the low bits of each id as they are,
the high bits as the places of ones in a bit row. That takes about 2 + log2(V / K) bits an id
instead of log2(V), the same number of bytes for every token, and needs no table.
"""

from __future__ import annotations

import numpy as np


def pack_bits(values_NK: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers below ``2 ** bits``, packed row by row, uint8 [N, ceil(K * bits / 8)]."""
    expanded = (values_NK[..., None] >> np.arange(bits)) & 1
    flat = expanded.reshape(len(values_NK), values_NK.shape[1] * bits).astype(np.uint8)
    return np.packbits(flat, axis=1, bitorder="little")


def unpack_bits(packed: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Undoes :func:`pack_bits`: float32 [N, count], exact for at most 24 bits."""
    flat = np.unpackbits(packed, axis=1, count=count * bits, bitorder="little")
    powers = (1 << np.arange(bits)).astype(np.float32)
    return flat.reshape(len(packed), count, bits).astype(np.float32) @ powers


class IdSets:
    """Elias-Fano code of K ids below V; repeated ids are allowed.

    Args:
        count: K.
        vocab_size: V.

    Example:
        >>> sets = IdSets(count=3, vocab_size=100)
        >>> packed = sets.encode(np.array([[5, 70, 71]]))
        >>> sets.decode(packed).tolist()
        [[5, 70, 71]]
    """

    def __init__(self, count: int, vocab_size: int) -> None:
        self.count = count
        self.low_bits = max(0, (vocab_size // count).bit_length() - 1)
        self._places = count + ((vocab_size - 1) >> self.low_bits)
        self._low_bytes = -(-count * self.low_bits // 8)

    @property
    def bytes_per_token(self) -> int:
        """Length of a token's code."""
        return self._low_bytes + -(-self._places // 8)

    def encode(self, sorted_ids_NK: np.ndarray) -> np.ndarray:
        """Ascending ids, integers [N, K], to uint8 [N, bytes_per_token]."""
        high = sorted_ids_NK >> self.low_bits
        places = np.zeros((len(high), self._places), dtype=np.uint8)
        np.put_along_axis(places, high + np.arange(self.count), 1, axis=1)
        low = pack_bits(sorted_ids_NK & ((1 << self.low_bits) - 1), self.low_bits)
        return np.concatenate([low, np.packbits(places, axis=1, bitorder="little")], axis=1)

    def decode(self, packed: np.ndarray) -> np.ndarray:
        """Undoes :meth:`encode`: int64 [N, K].

        Raises:
            ValueError: bytes that :meth:`encode` did not write.
        """
        low = unpack_bits(packed[:, : self._low_bytes], self.count, self.low_bits)
        high = packed[:, self._low_bytes :]
        places = np.unpackbits(high, axis=1, count=self._places, bitorder="little")
        found = np.nonzero(places)[1]
        if len(found) != len(packed) * self.count:
            raise ValueError(
                f"a token's code must hold {self.count} ids, but {len(packed)} tokens hold "
                f"{len(found)}: the bytes are damaged; open the cache with verify: full"
            )
        high_ids = found.reshape(len(packed), self.count) - np.arange(self.count)
        return (high_ids << self.low_bits) + low.astype(np.int64)
