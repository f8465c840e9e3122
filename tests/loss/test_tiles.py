"""What tiles are made of."""

from __future__ import annotations

import pytest
import torch

from sad_components.loss.tiles import _largest


@pytest.mark.parametrize("vocab", [1, 7, 64, 96, 513, 1024])
def test_largest_is_max_and_the_first_of_equals(vocab):
    g = torch.Generator().manual_seed(vocab)
    for values in (torch.randn(9, vocab, generator=g), torch.zeros(3, vocab)):
        peak, where = _largest(values)
        expected = values.max(-1, keepdim=True)
        assert torch.equal(peak, expected.values)
        assert torch.equal(values.gather(-1, where), expected.values)
        assert torch.equal(where[:, 0], (values == peak).int().argmax(-1))
