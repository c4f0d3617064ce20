"Pictures in shuffled blocks, against a plain loop, and at the limits."
import pytest, torch
from tlcourse.base import BadInput
from tlcourse.distance import shuffle_blocks

def blocks(x, size):
    "The blocks of one picture, by a plain loop"
    return [x[:, i:i+size, j:j+size] for i in range(0, x.shape[1], size) for j in range(0, x.shape[2], size)]

@pytest.mark.parametrize('shape,size', [((5, 3, 8, 8), 4), ((4, 1, 6, 12), 3), ((3, 2, 4, 6), 1)])
def test_each_block_stays_whole(shape, size):
    "Every block is there once, unturned, with all its channels."
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    y = shuffle_blocks(x, size)
    assert y.shape == x.shape and not torch.equal(x, y)
    for a,b in zip(x, y):
        was, now = ({tuple(o.flatten().tolist()) for o in blocks(p, size)} for p in (a, b))
        assert was == now and len(was) == shape[2]*shape[3]//size**2

def test_an_order_for_each_picture():
    "Pictures differ in their order; the seed alone decides it."
    x = torch.arange(64).view(1, 1, 8, 8).expand(20, 3, 8, 8) # not contiguous
    y = shuffle_blocks(x, 2)
    assert len({tuple(o.flatten().tolist()) for o in y}) == 20
    assert torch.equal(y, shuffle_blocks(x, 2, seed=0)) and not torch.equal(y, shuffle_blocks(x, 2, seed=1))
    state = torch.get_rng_state()
    shuffle_blocks(x, 2)
    assert torch.equal(state, torch.get_rng_state())

def test_orders_are_equally_frequent():
    "A first block comes to each of four places about equally often."
    x = torch.arange(4).view(1, 1, 2, 2).expand(4000, 1, 2, 2)
    at = shuffle_blocks(x, 1).flatten(1).argmin(1).bincount(minlength=4)
    assert (at - 1000).abs().max() < 120 # over four standard deviations

def test_one_block_changes_nothing():
    for x in torch.rand(2, 3, 8, 8), torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8):
        y = shuffle_blocks(x, 8)
        assert torch.equal(x, y) and y.dtype == x.dtype

@pytest.mark.parametrize('size', [0, -2, 3, 16, 2., None])
def test_a_size_that_does_not_divide(size):
    with pytest.raises(BadInput, match='divides both'): shuffle_blocks(torch.zeros(1, 3, 8, 8), size)

def test_both_sides_are_divided():
    for shape in (1, 3, 8, 6), (1, 3, 6, 8):
        with pytest.raises(BadInput, match='divides both'): shuffle_blocks(torch.zeros(shape), 4)

def test_one_picture_is_no_batch():
    with pytest.raises(BadInput, match='no batch'): shuffle_blocks(torch.zeros(3, 8, 8), 2)
