"""What the kernels of `rows_norm` do to a tile [positions, channels]: device functions; S is their `Shape`."""

import triton
import triton.language as tl


@triton.jit
def channels_of(S: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr) -> tl.tuple:
    """Return the channel of each column and whether there is one."""
    column = tl.arange(0, GROUPS * WIDE)
    begin = tl.program_id(0) * (S.groups * S.wide)
    if S.wide == WIDE:  # plain runs, which the compiler reads in 16 bytes at once
        channel, live = begin + column, column < S.groups * WIDE
    else:
        channel = begin + column // WIDE * S.wide + column % WIDE
        live = (column % WIDE < S.wide) & (column // WIDE < S.groups)
    return channel, live


@triton.jit
def constant_of(
    added: tl.tensor,
    shift: tl.tensor,
    sample: tl.tensor,
    channel: tl.tensor,
    live: tl.tensor,
    S: tl.constexpr,
) -> tl.tensor:
    """Return what is added to every position, fp32 [columns]."""
    extra = tl.zeros_like(channel).to(tl.float32)
    if S.added:
        extra += tl.load(added + channel, mask=live, other=0.0).to(tl.float32)
    if S.shift:
        extra += tl.load(shift + sample * (S.first + S.second) + channel, mask=live, other=0.0).to(tl.float32)
    return extra


@triton.jit
def load_tile(
    a: tl.tensor,
    b: tl.tensor,
    sample: tl.tensor,
    place: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    S: tl.constexpr,
) -> tl.tensor:
    """Return a tile of the concatenated sources, fp32. Two masked loads: selecting pointers would lose alignment."""
    row = (sample * S.positions + place)[:, None]
    own = inside & (channel < S.first)[None, :]
    tile = tl.load(a + row * S.first + channel[None, :], mask=own, other=0.0).to(tl.float32)
    if S.second:
        theirs = inside & (channel >= S.first)[None, :]
        place_b = row * S.second + (channel - S.first)[None, :]
        tile += tl.load(b + place_b, mask=theirs, other=0.0).to(tl.float32)
    return tile


@triton.jit
def through_act(
    g: tl.tensor,
    normal: tl.tensor,
    sample: tl.tensor,
    place: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    factor: tl.tensor,
    constant: tl.tensor,
    S: tl.constexpr,
) -> tl.tensor:
    """Return a tile of g', the output's gradient pulled back through the SiLU."""
    row = (sample * S.positions + place)[:, None] * (S.first + S.second)
    pulled = tl.load(g + row + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if S.act:
        y = normal * factor[None, :] + constant[None, :]
        gate = tl.sigmoid(y)
        pulled = pulled * gate * (1.0 + y * (1.0 - gate))
    return pulled


@triton.jit
def store_sum(
    out: tl.tensor,
    value: tl.tensor,
    plus: tl.tensor,
    more: tl.tensor,
    place: tl.tensor,
    mask: tl.tensor,
    PLUS: tl.constexpr,
) -> None:
    """Store `value` and the first PLUS of two other tensors' values, rounded once."""
    if PLUS > 0:
        value += tl.load(plus + place, mask=mask, other=0.0).to(tl.float32)
    if PLUS > 1:
        value += tl.load(more + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def group_sum(value: tl.tensor, GROUPS: tl.constexpr, WIDE: tl.constexpr) -> tl.tensor:
    """Return, for each column, the sum over its group."""
    total = tl.sum(tl.reshape(value, (GROUPS, WIDE)), 1)
    return tl.reshape(tl.broadcast_to(total[:, None], (GROUPS, WIDE)), (GROUPS * WIDE,))
