"""What the demo model knows: questions about this project's subject, each with one short answer."""

from typing import Final

FACTS: Final = (
    (
        "What is a mixture of experts?",
        "A model whose layers hold many small networks, the experts. A router picks a few for every token.",
    ),
    (
        "Why is a mixture of experts cheap to run?",
        "For each token it reads only a few percent of its weights.",
    ),
    ("What does the router do?", "It scores all experts for a token and picks the best few."),
    ("What is top-k?", "The number of experts that compute each token."),
    ("What is a routed expert?", "A small network that works only on the tokens the router sends to it."),
    ("What is a shared expert?", "An expert that every token passes through, whatever the router says."),
    (
        "What does one expert compute?",
        "A gate and an up projection, an activation, and a down projection back to the hidden size.",
    ),
    (
        "What limits the speed of decoding?",
        "Reading the weights: every token must fetch its experts from memory once.",
    ),
    ("What is DRAM bandwidth?", "The number of bytes per second that a processor can read from main memory."),
    (
        "How fast can a server decode?",
        "At most its DRAM bandwidth divided by the bytes of the experts that one token needs.",
    ),
    (
        "What limits the speed of prefill?",
        "Arithmetic: many tokens share each weight, so matrix units do the work.",
    ),
    (
        "What is a NUMA node?",
        "A group of cores with memory of its own, which they read faster than any other.",
    ),
    (
        "Why should threads read local memory?",
        "A remote node answers later and over a narrow link, so both sides wait.",
    ),
    ("What is quantisation?", "Storing weights in few bits, with a scale for every small group of them."),
    ("What is int4?", "A format of four bits a weight: sixteen levels, times the scale of the group."),
    ("Why do groups have scales?", "So that one large weight does not cost the precision of all the others."),
    ("How large is a group?", "Thirty-two weights along the input share one scale."),
    ("What is bfloat16?", "A sixteen bit number with the range of float32 and eight bits of precision."),
    (
        "What does lsg-convert do?",
        "It turns a checkpoint once, offline, into the exact bytes the engine will read.",
    ),
    (
        "What does lsg-serve do?",
        "It starts unmodified sglang with a plugin that lets the engine compute the experts.",
    ),
    (
        "What is a blob?",
        "A layer's experts in one file, ordered so that any slice of it is one contiguous read.",
    ),
    (
        "What is a unit?",
        "Some rows of gate and up with the matching columns of down: a thread can finish it alone.",
    ),
    ("Why is the file unit-major?", "So that one conversion serves any number of NUMA nodes and GPUs."),
    ("Why convert offline?", "Because the work is the same at every start, and a start should take seconds."),
    (
        "Why map a file instead of reading it?",
        "Because the page cache already holds the bytes: nothing is copied.",
    ),
    (
        "What is a huge page?",
        "A page of two mebibytes: one address translation serves five hundred small pages.",
    ),
    ("What does the GPU do?", "Attention, the router, shared experts, and all that fits into its memory."),
    ("What do the CPUs do?", "They compute the routed experts, next to the memory that holds them."),
    (
        "What is AMX?",
        "Matrix units inside the cores: they multiply whole tiles of numbers with one instruction.",
    ),
    ("What is a token?", "A piece of text, often a short word, that a model reads or writes in one step."),
    ("What is a checksum for?", "To notice a damaged byte before it becomes a wrong answer."),
    ("Who wrote this answer?", "A very small mixture of experts, trained on this very machine."),
)
