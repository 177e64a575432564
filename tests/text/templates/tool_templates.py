"""Chat templates of our own that write calls as published ones do, each in its smallest form."""

_HEAD = (
    "{{ bos_token }}{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
)
_TAIL = (
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # fmt: skip


def _template(calls, *, result="{{ m.content }}", before=""):
    words = "{% if m.content %}{{ m.content }}{% endif %}"
    turn = (
        f"{{% if m.role == 'tool' %}}{result}{{% elif m.tool_calls %}}{before}{words}{calls}"
        f"{{% else %}}{words}{{% endif %}}"
    )
    return _HEAD + turn + _TAIL


_EACH = "{% for c in m.tool_calls %}{% set f = c.function %}"
_COMMA = "{% if not loop.last %}{{ ', ' }}{% endif %}"
_ARGS = "{{ f.arguments | tojson }}"
_PARAMS = "{% for k, v in f.arguments.items() %}"
_VALUE = "{{ v if v is string else v | tojson }}"
_ONE = "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
_NINE = (
    "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('an id has nine letters') }}{% endif %}{% endfor %}"
)  # fmt: skip

TEMPLATES = {
    "a mark around each": _template(
        _EACH + "{{ '\n<tool_call>\n{\"name\": \"' + f.name + '\", \"arguments\": ' }}" + _ARGS
        + "{{ '}\n</tool_call>' }}{% endfor %}",
        result="{{ '<tool_response>' + m.content + '</tool_response>' }}"),
    "bare": _template(
        _ONE + _EACH + "{{ '{\"name\": \"' + f.name + '\", \"parameters\": ' }}" + _ARGS + "{{ '}' }}{% endfor %}"),
    "a list with ids": _template(
        _NINE + "{{ '[TOOL_CALLS][' }}" + _EACH + "{{ '{\"name\": \"' + f.name + '\", \"arguments\": ' }}" + _ARGS
        + "{{ ', \"id\": \"' + c.id + '\"}' }}" + _COMMA + "{% endfor %}{{ ']' }}"),
    "name and mark": _template(_EACH + "{{ '[TOOL_CALLS]' + f.name + '[ARGS]' }}" + _ARGS + "{% endfor %}"),
    "numbered": _template(
        "{{ '<|START_ACTION|>[\n' }}" + _EACH + "{{ '    {\"tool_call_id\": \"' ~ loop.index0 ~ '\", \"tool_name\": \"' + f.name"
        " + '\", \"parameters\": ' }}" + _ARGS + "{{ '}' }}{% if not loop.last %}{{ ',\n' }}{% endif %}{% endfor %}"
        "{{ '\n]<|END_ACTION|>' }}"),
    "the name is a key": _template(
        "{{ '<|tools_prefix|>[' }}" + _EACH + "{{ '{\"' + f.name + '\": ' }}" + _ARGS + "{{ '}' }}" + _COMMA
        + "{% endfor %}{{ ']<|tools_suffix|>' }}"),
    "a list with an end": _template(
        "{{ '<|tool_call|>[' }}" + _EACH + "{{ '{\"name\": \"' + f.name + '\", \"arguments\": ' }}" + _ARGS + "{{ '}' }}" + _COMMA
        + "{% endfor %}{{ ']<|/tool_call|>' }}"),
    "arguments as text": _template(
        "{% if m.content is none %}{{ '<｜calls｜>' }}" + _EACH + "{{ '<｜call｜>function<｜sep｜>' + f.name"
        " + '\n```json\n' + f.arguments + '\n```<｜end｜>' }}{% endfor %}{{ '<｜/calls｜>' }}{% endif %}"),
    "a function's tag": _template(_EACH + "{{ '<function=' + f.name + '>' }}" + _ARGS + "{{ '</function>' }}{% endfor %}"),
    "attributes": _template(
        _EACH + "{% if not loop.first %}{{ '\n' }}{% endif %}{{ '<function name=\"' + f.name + '\">' }}" + _PARAMS
        + "{{ '<param name=\"' + k + '\">' }}{% if v is string and ('<' in v or '&' in v or '\n' in v) %}"
        "{{ '<![CDATA[' + v + ']]>' }}"
        "{% else %}" + _VALUE + "{% endif %}{{ '</param>' }}{% endfor %}{{ '</function>' }}{% endfor %}"),
    "a tag for each": _template(
        _EACH + "{{ '\n<tool_call>\n<function=' + f.name + '>\n' }}" + _PARAMS + "{{ '<parameter=' + k + '>\n' }}" + _VALUE
        + "{{ '\n</parameter>\n' }}{% endfor %}{{ '</function>\n</tool_call>' }}{% endfor %}"),
    "keys and values": _template(
        _EACH + "{{ '\n<tool_call>' + f.name }}" + _PARAMS + "{{ '\n<arg_key>' + k + '</arg_key>\n<arg_value>' }}" + _VALUE
        + "{{ '</arg_value>' }}{% endfor %}{{ '\n</tool_call>' }}{% endfor %}",
        before="{{ '<think></think>\n' }}"),
}  # fmt: skip
SINGLE = ("bare",)
TAGGED = ("attributes", "a tag for each", "keys and values")
