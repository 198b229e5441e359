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
def affine_of(weight: tl.tensor, bias: tl.tensor, channel: tl.tensor, live: tl.tensor) -> tl.tuple:
    """Return the norm's scale and shift of each column, fp32."""
    factor = tl.load(weight + channel, mask=live, other=0.0).to(tl.float32)
    return factor, tl.load(bias + channel, mask=live, other=0.0).to(tl.float32)


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
def summed_tile(
    a: tl.tensor,
    b: tl.tensor,
    term: tl.tensor,
    more: tl.tensor,
    level: tl.tensor,
    sample: tl.tensor,
    place: tl.tensor,
    channel: tl.tensor,
    inside: tl.tensor,
    S: tl.constexpr,
) -> tl.tensor:
    """As `load_tile`, where the first source is the sum of its terms, rounded once and written here."""
    row = (sample * S.positions + place)[:, None]
    own = inside & (channel < S.first)[None, :]
    at = row * S.first + channel[None, :]
    tile = tl.load(term + at, mask=own, other=0.0).to(tl.float32)
    if S.terms > 1:
        tile += tl.load(more + at, mask=own, other=0.0).to(tl.float32)
    if S.level:
        tile += tl.load(level + channel, mask=channel < S.first, other=0.0).to(tl.float32)[None, :]
    rounded = tile.to(a.dtype.element_ty)
    tl.store(a + at, rounded, mask=own)
    tile = rounded.to(tl.float32)
    if S.second:
        theirs = inside & (channel >= S.first)[None, :]
        place_b = row * S.second + (channel - S.first)[None, :]
        tile += tl.load(b + place_b, mask=theirs, other=0.0).to(tl.float32)
    return tile


@triton.jit
def first_pixel(
    a: tl.tensor,
    b: tl.tensor,
    term: tl.tensor,
    more: tl.tensor,
    level: tl.tensor,
    sample: tl.tensor,
    channel: tl.tensor,
    live: tl.tensor,
    S: tl.constexpr,
) -> tl.tensor:
    """Return the sources at a sample's first position, fp32 [columns]."""
    own, at = live & (channel < S.first), sample * (S.positions * S.first) + channel
    if S.terms:
        value = tl.load(term + at, mask=own, other=0.0).to(tl.float32)
        if S.terms > 1:
            value += tl.load(more + at, mask=own, other=0.0).to(tl.float32)
        if S.level:
            value += tl.load(level + channel, mask=own, other=0.0).to(tl.float32)
    else:
        value = tl.load(a + at, mask=own, other=0.0).to(tl.float32)
    if S.second:
        place_b = sample * (S.positions * S.second) + channel - S.first
        value += tl.load(b + place_b, mask=live & (channel >= S.first), other=0.0).to(tl.float32)
    return value


@triton.jit
def weight_of_product(
    through: tl.tensor, channel: tl.tensor, live: tl.tensor, S: tl.constexpr, OUT: tl.constexpr
) -> tl.tensor:
    """Return the weight of the sources' 1x1 convolution, [columns, OUT]."""
    column = tl.arange(0, OUT)
    place = channel[:, None] + (column * (S.first + S.second))[None, :]
    return tl.load(through + place, mask=live[:, None] & (column < S.out)[None, :], other=0.0)


@triton.jit
def load_product(
    g_product: tl.tensor, row: tl.tensor, place: tl.tensor, S: tl.constexpr, OUT: tl.constexpr
) -> tl.tensor:
    """Return a tile of the gradient of that convolution's result, [positions, OUT]."""
    column = tl.arange(0, OUT)
    inside = (place < S.positions)[:, None] & (column < S.out)[None, :]
    return tl.load(g_product + row * S.out + column[None, :], mask=inside, other=0.0)


@triton.jit
def store_product(
    product: tl.tensor,
    result: tl.tensor,
    row: tl.tensor,
    place: tl.tensor,
    S: tl.constexpr,
    OUT: tl.constexpr,
) -> None:
    """Store a tile of that convolution's result."""
    column = tl.arange(0, OUT)
    inside = (place < S.positions)[:, None] & (column < S.out)[None, :]
    tl.store(product + row * S.out + column[None, :], result.to(product.dtype.element_ty), mask=inside)


@triton.jit
def operand(tile: tl.tensor, like: tl.tensor, S: tl.constexpr) -> tl.tensor:
    """Return a tile as products take it: of the dtype that `like` points at, in the interpreter fp32."""
    return tile.to(tl.float32) if S.upcast else tile.to(like.dtype.element_ty)


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
