"""Chat templates of models that think, as far as thinking goes: what their cards and official templates do with the marks."""

_TURNS = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set thought = m.reasoning_content | default('') %}"
    "{{- '<|im_start|>assistant\n' }}{%- if thought and loop.last %}{{ THOUGHT }}{%- endif %}"
    "{{- m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}END{%- endif %}"
)
_KEPT = "'<think>\n' + thought.strip('\n') + '\n</think>\n\n'"
_CLOSED = (
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
)
_OPENED = "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- else %}"

# The model writes its opening mark itself; without thinking the prompt ends in an empty thought.
QWEN3 = _TURNS.replace("THOUGHT", _KEPT).replace("END", _CLOSED)
# The prompt opens the thought.
QWEN35 = _TURNS.replace("THOUGHT", _KEPT).replace("END", _OPENED + "{{- '<think>\n' }}{%- endif %}")
# Three states: not set writes nothing, true opens a thought, false writes an empty one.
MINICPM5 = (
    _TURNS.replace("THOUGHT", _KEPT)
    .replace(
        "END",
        "{%- if enable_thinking is defined %}{%- if enable_thinking %}{{- '<think>\n' }}"
        "{%- else %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}",
    )
)  # fmt: skip
# A hybrid that does not write earlier thoughts; its marks are text to its tokenizer.
MINICPM41 = _TURNS.replace("THOUGHT", "''").replace("END", _CLOSED)
# Marks of its own, without line breaks, and no switch.
MAGISTRAL = _TURNS.replace("THOUGHT", "'[THINK]' + thought + '[/THINK]'").replace("END", "")
# It always thinks, the prompt opens the thought, and there is no switch.
R1 = _TURNS.replace("THOUGHT", "''").replace("END", "{{- '<think>\n' }}")
ALL = {
    "qwen3": QWEN3,
    "qwen3.5": QWEN35,
    "minicpm5": MINICPM5,
    "minicpm4.1": MINICPM41,
    "magistral": MAGISTRAL,
    "r1": R1,
}
