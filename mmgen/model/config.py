"""What a generator is made of: frozen dataclasses that go to JSON and back (no jax in here)."""

from dataclasses import dataclass, field
from typing import Literal

from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout

from mmgen.plan.masked import Masked
from mmgen.plan.next_neighbor import NextNeighbor
from mmgen.plan.next_scale import NextScale
from mmgen.plan.next_token import NextToken
from mmgen.plan.random_order import RandomOrder

__all__ = [
    "BlockConfig", "ClassCondition", "Dropout", "FeatureCondition", "GeneratorConfig", "Masked", "NextNeighbor", "NextScale",
    "NextToken", "RandomOrder", "Sampling", "TextCondition", "TokenLayout",
]


@dataclass(frozen=True)
class ClassCondition:
    """One slot that holds a class; one more row of the table, number `classes`, is the null class of guidance."""

    classes: int = 1000
    prefix: int = 0  # learned slots before that of the class, the same for all (RAR has one)

    @property
    def slots(self) -> int:
        return self.prefix + 1


@dataclass(frozen=True)
class TextCondition:
    """`length` slots of SentencePiece tokens, padded on the left; the empty prompt is the null condition of guidance."""

    vocabulary: int = 512
    length: int = 32

    @property
    def slots(self) -> int:
        return self.length


@dataclass(frozen=True)
class FeatureCondition:
    """`length` slots of features of another model (T5 in LlamaGen), `width` numbers each, mapped by a two-layer MLP.
    The null condition is a fixed array that belongs to the weights."""

    width: int = 2048
    length: int = 120

    @property
    def slots(self) -> int:
        return self.length


@dataclass(frozen=True)
class BlockConfig:
    """One transformer layer: norm, grouped-query attention, norm, MLP. The defaults are LlamaGen's."""

    width: int = 768
    heads: int = 12
    kv_heads: int | None = None  # None: as many as heads
    mlp: int = 2048
    mlp_kind: Literal["swiglu", "gelu", "gelu_exact"] = "swiglu"  # gelu: of two matrices, tanh approximation, or the exact erf
    bias: bool = False  # behind every product; the keys' only with qk_norm, as it would change nothing without
    qk_norm: bool = False
    l2_attention: bool = False  # queries and keys of length 1, and a learned temperature for each head (VAR)
    position: Literal["rope_1d", "rope_2d", "learned"] = "rope_2d"  # learned: added to the inputs, not to queries and keys
    # Scaled, shifted and gated by the class (adaLN, arXiv 2212.09748): by a matrix of each layer; by one of all layers and an
    # offset of each; or by a matrix of each layer that reads the class and the slot's number (RAR, arXiv 2411.00776).
    modulation: Literal["none", "block", "shared", "slot"] = "none"
    # Of layers, queries and keys. rms: RMSNorm with a learned scale, and LayerNorm without one where it is modulated; layer:
    # LayerNorm with a learned scale and offset.
    norm: Literal["rms", "layer"] = "rms"
    norm_after: bool = False  # as in BERT (arXiv 1810.04805): norms of the sums, and of the inputs; a layer more in the head
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def key_bias(self) -> bool:
        return self.bias and self.qk_norm

    def __post_init__(self):
        groups = self.kv_heads or self.heads
        rotated = {"rope_2d": 4, "rope_1d": 2, "learned": 1}[self.position]
        if self.width % self.heads or self.heads % groups or self.head_dim % rotated:
            raise UserError(
                f"width {self.width} with {self.heads} heads and {groups} key-value heads does not divide evenly: width must "
                f"be a multiple of heads, heads of kv_heads, and width / heads of {rotated} for {self.position}"
            )
        if self.norm_after and self.modulation != "none":
            raise UserError("what modulates stands behind norms in front of each branch: set block.norm_after false")


@dataclass(frozen=True)
class Dropout:
    """Rates while training: token embeddings, the outputs of attention and MLP, whole layers (drop path, rising with depth)."""

    token: float = 0.0
    residual: float = 0.0
    mlp: float = 0.0
    path: float = 0.0


@dataclass(frozen=True)
class Sampling:
    """Recommended settings, stored with the weights; `None` arguments of `generate` mean these."""

    guidance: float = 1.0
    guidance_schedule: Literal["constant", "linear"] | tuple[Literal["power_cosine"], float] = "constant"
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0


@dataclass(frozen=True)
class GeneratorConfig:
    plan: NextToken | NextNeighbor | NextScale | RandomOrder | Masked = field(default_factory=NextToken)
    layout: TokenLayout = field(default_factory=lambda: TokenLayout(height=16, width=16, codebook_size=16384))
    condition: ClassCondition | TextCondition | FeatureCondition = field(default_factory=ClassCondition)
    block: BlockConfig = field(default_factory=BlockConfig)
    depth: int = 12
    dropout: Dropout = field(default_factory=Dropout)
    remat: bool = False  # recompute each layer in the backward pass: less memory, about a third more work
    # With remat, products that are kept nevertheless: queries, keys and values; what attention gives; the MLP's hidden units.
    remat_keep: tuple[Literal["qkv", "attention", "mlp"], ...] = ()
    # How attention over all slots is computed. xla: as products; cudnn: NVIDIA's flash attention; splash: a kernel for TPUs;
    # blocks: products of the slots that are read together (a scale, a diagonal); auto: by the device and the number of slots.
    attention: Literal["auto", "xla", "cudnn", "splash", "blocks"] = "auto"
    loss_chunks: int = 1  # parts of the sites whose logits are held at a time: large vocabularies are never held whole
    unread: int = 0  # rows of a published checkpoint that no slot reads, kept so that it can be written again

    def __post_init__(self):
        if self.block.modulation != "none" and not isinstance(self.condition, ClassCondition):
            raise UserError("modulation goes by the class: for prompts and features set block.modulation none")
        if self.remat_keep and not self.remat:
            raise UserError(f"remat_keep {list(self.remat_keep)} says what remat keeps: set remat true too")
        if self.loss_chunks < 1 or self.layout.sites % self.loss_chunks:
            fits = ", ".join(str(n) for n in range(1, self.layout.sites + 1) if self.layout.sites % n == 0)
            raise UserError(f"loss_chunks {self.loss_chunks} does not divide {self.layout.sites} sites: take one of {fits}")

    @property
    def taps(self) -> tuple[int, ...]:
        """After how many layers each head reads the hidden state."""
        return self.plan.taps(self.depth)

    @property
    def layers(self) -> int:
        return max(self.taps)
