"""The words of the Learn tab, as HTML; each section has an id that the settings link to."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

SECTIONS = {  # id: heading
    "learn-lora": "What LoRA does",
    "learn-target-modules": "How little is trained",
    "learn-precision": "What fits in memory",
    "learn-methods": "Beside LoRA",
    "learn-spectrum": "Which rank a LoRA really used",
}
ARXIV = "https://arxiv.org/abs/"


def paper(text: str, number: str) -> str:
    """A link to a paper on arXiv, which opens in a page of its own."""
    return f'<a href="{ARXIV}{number}" target="_blank" rel="noopener noreferrer">{escape(text)}</a>'


def _heading(section: str) -> str:
    return f'<h2 id="{section}">{SECTIONS[section]}</h2>'


OPENING = (
    "<p>Five minutes on what happens after you press Start, and what the settings change in it.</p>"
    '<p class="learn-contents">'
    + "".join(f'<a href="#{section}">{heading}</a>' for section, heading in SECTIONS.items())
    + "</p>"
    + _heading("learn-lora")
    + "<p>A language model is for the most part a pile of large matrices of numbers. Full fine-tuning changes all of "
    f"them. LoRA, low-rank adaptation ({paper('Hu et al., 2021', '2106.09685')}), leaves each matrix W<sub>0</sub> as "
    "it is and trains two thin ones beside it, B and A, whose product has the same shape. For an input x a layer then "
    "computes</p>"
    '<p class="learn-formula">h = W<sub>0</sub> x + <span>&alpha;</span>/<span>r</span> &middot; <b>B A</b> x</p>'
)

AFTER_PICTURE = (
    '<h3 id="learn-rank">Rank</h3>'
    "<p>The rank r is the number of directions in which the update can point. The numbers to train grow with it; what "
    "there is to learn does not. A style or a format is often learnt at rank 4 to 8, a new task at 16 to 32, and much "
    "new text at 64 or more. More than the data needs costs memory and learns the examples by heart sooner. "
    '<a href="#learn-spectrum">Below</a> you see what a finished LoRA has used of its rank.</p>'
    '<h3 id="learn-alpha">Alpha</h3>'
    "<p>The update is multiplied by &alpha;/r. With the usual optimizers, a higher alpha acts much like a higher "
    "learning rate, so there is no need to search for both: keep alpha at 2r, say, and change the learning rate. "
    "Because of the division by r, a change of the rank alone makes the update weaker or stronger; change alpha with "
    "it to keep the strength.</p>"
    "<h3>The first step and the last</h3>"
    "<p>A starts with small random numbers and B with zeros. Their product is zero, so training begins exactly at the "
    "base model. Afterwards the product can be added to the weights once and for all, W = W<sub>0</sub> + &alpha;/r "
    "&middot; B A: such a merged model is as large and as fast as the base model was. Not merged, the LoRA stays a "
    "small file that can be put on and taken off.</p>"
)

TARGETS = _heading("learn-target-modules") + (
    "<p>In each block of a model there are linear layers for attention (queries, keys, values, output) and for the "
    "feed-forward part. The first LoRAs were put on queries and values only. On all linear layers they come close to "
    f"full fine-tuning, even at low rank ({paper('Dettmers et al., 2023', '2305.14314')}), which is why that is the "
    "usual choice. The table gives the numbers in A and B by rank, and their share of all numbers of the model, for "
    "four well-known models and for one of yours, whose layers are counted whatever its family.</p>"
)

PRECISION = _heading("learn-precision") + (
    "<p>The base model only has to be read, not changed, so it may be stored in fewer bits. The table is the memory of "
    "the weights alone, in GB of 2<sup>30</sup> bytes, with the smallest common graphics card (8, 12, 16, 24, 48 or "
    "80 GB) that holds them and keeps a tenth free.</p>"
)

METHODS = _heading("learn-methods") + (
    "<p>Other ways to the same end, and changes to LoRA itself, with the papers they come from. The Training tab shows "
    "those that can be trained here.</p>"
)

SPECTRUM = _heading("learn-spectrum") + (
    "<p>The update of a layer, &alpha;/r &middot; B A, can be taken apart into directions, each with a strength: its "
    "singular values. Where a few are large and the others small, a few directions do the work. The <em>effective "
    "rank</em> (Roy &amp; Vetterli, 2007) says in one number how many: it is the exponential of the entropy of the "
    "values divided by their sum, 1 for a single direction and r for r equal ones.</p>"
)


@dataclass(frozen=True)
class Method:
    """A way to train a model: where it comes from, what it does, when to take it."""

    name: str
    papers: tuple[tuple[str, str], ...]  # authors and year, number on arXiv
    what: str
    when: str


GROUPS: dict[str, tuple[Method, ...]] = {
    "All of the model": (
        Method(
            "Full fine-tuning",
            (),
            "Trains every number of the model, 16 bytes of memory for each with AdamW.",
            "With much data that is far from what the model knows, and the memory for it.",
        ),
    ),
    "A smaller base model under the LoRA": (
        Method(
            "8-bit",
            (("LLM.int8(), Dettmers et al., 2022", "2208.07339"),),
            "Keeps the frozen weights in 8 bits and computes the few columns with outliers in 16. Half the memory and "
            "hardly any loss, but slower.",
            "When 16 bits just do not fit.",
        ),
        Method(
            "QLoRA, 4-bit",
            (("Dettmers et al., 2023", "2305.14314"),),
            "Keeps the frozen weights in 4 bits: NF4, a code made for weights that are normally distributed, whose "
            "constants are quantized once more. Computes in 16 bits; A and B are not quantized.",
            "When memory is short: for many models the only way on one card.",
        ),
    ),
    "Changes to LoRA": (
        Method(
            "rsLoRA",
            (("Kalajdzievski, 2023", "2312.03732"),),
            "Divides alpha by the square root of r instead of r, so that the update does not fade as the rank grows.",
            "With ranks of 64 and more.",
        ),
        Method(
            "DoRA",
            (("Liu et al., 2024", "2402.09353"),),
            "Splits each weight into length and direction, trains the length as a vector and the direction by LoRA.",
            "When a low rank falls short; each step takes longer.",
        ),
        Method(
            "LoRA+",
            (("Hayou et al., 2024", "2402.12354"),),
            "Gives B a higher learning rate than A, about 16 times in the paper, because with one rate for both a wide "
            "model learns inefficiently.",
            "When a training gets going too slowly.",
        ),
        Method(
            "VeRA",
            (("Kopiczko et al., 2023", "2310.11454"),),
            "One random A and B, frozen and shared by all layers; only two vectors a layer are trained.",
            "When the file must be tiny, for instance with a LoRA for each of many users.",
        ),
        Method(
            "LoHa, LoKr",
            (("Hyeon-Woo et al., 2021", "2108.06098"), ("Yeh et al., 2023", "2309.14859")),
            "Build the update from two low-rank products multiplied element by element (LoHa), or from a Kronecker "
            "product (LoKr): a higher rank from as many numbers.",
            "When LoRA's rank seems to be the limit. Better known from image models.",
        ),
    ),
    "Other beginnings for A and B": (
        Method(
            "PiSSA",
            (("Meng et al., 2024", "2404.02948"),),
            "A and B begin as the strongest singular directions of the weight, and what is left of it is frozen.",
            "When there are few steps to learn in, or with a base in 4 bits.",
        ),
        Method(
            "OLoRA",
            (("Büyükakyüz, 2024", "2406.01775"),),
            "The same idea with a QR decomposition: A and B begin with orthonormal directions of the weight.",
            "As PiSSA, with a quicker start.",
        ),
        Method(
            "LoftQ",
            (("Li et al., 2023", "2310.08659"),),
            "Chooses the quantized weight and A and B together, so that the sum is near the original weight.",
            "When a base in 4 bits begins visibly worse than in 16.",
        ),
        Method(
            "EVA",
            (("Paischer et al., 2024", "2410.07170"),),
            "A begins with the main directions of what your data brings into each layer. The paper also gives some "
            "layers more rank than others; here all keep the one you ask for.",
            "When a pass over the data before the training is no trouble.",
        ),
    ),
    "Other small things to train": (
        Method(
            "Adapters",
            (("Houlsby et al., 2019", "1902.00751"),),
            "Small layers of two matrices with a nonlinear function between them, put in behind the parts of each "
            "block. They cannot be merged, so the model gets slower. LoRA came after them.",
            "For comparison; they are not trained here.",
        ),
        Method(
            "IA3",
            (("Liu et al., 2022", "2205.05638"),),
            "Multiplies keys, values and the inside of the feed-forward part by trained vectors.",
            "With a few dozen examples, or when the file must be tiny.",
        ),
        Method(
            "Prefix tuning",
            (("Li & Liang, 2021", "2101.00190"),),
            "Trains keys and values that stand before the text in every layer.",
            "To steer tone or task with a frozen model; the prefix takes room from the text.",
        ),
        Method(
            "Prompt tuning",
            (("Lester et al., 2021", "2104.08691"),),
            "Trains a few input vectors that stand before the text, and nothing else.",
            "With very large models, where it comes near fine-tuning.",
        ),
        Method(
            "P-tuning",
            (("Liu et al., 2021", "2103.10385"),),
            "Such input vectors as well, made by a small network that is only needed in training.",
            "When prompt tuning does not get going.",
        ),
    ),
}


def methods_html() -> str:
    """The methods, group by group."""
    return "".join(
        f"<h3>{escape(group)}</h3><dl>{''.join(map(_method_html, methods))}</dl>" for group, methods in GROUPS.items()
    )


def _method_html(method: Method) -> str:
    papers = ", ".join(paper(*one) for one in method.papers)
    what, when = escape(method.what), escape(method.when)
    return f"<dt><b>{escape(method.name)}</b><span>{papers}</span></dt><dd>{what} <em>{when}</em></dd>"
