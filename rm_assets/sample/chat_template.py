"""The sample's chat template: a turn stands between <|im_start|> and <|im_end|>, where a score is read.

Whatever is shown stands in an expression, so that the white space of the template itself never counts.
"""

CHAT_TEMPLATE = r"""
{#- Turns are joined by a line feed, so that a conversation ends with <|im_end|>. -#}
{%- if tools -%}
    {{- "<|im_start|>system\nTools that may be called:" -}}
    {%- for tool in tools -%}
        {{- "\n" ~ tool | tojson -}}
    {%- endfor -%}
    {{- "<|im_end|>\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role not in ["system", "user", "assistant", "tool"] -%}
        {{- raise_exception("unknown role " ~ message.role) -}}
    {%- endif -%}
    {{- "" if loop.first else "\n" -}}
    {{- "<|im_start|>" ~ message.role ~ "\n" ~ (message.content or "") -}}
    {%- for call in message.tool_calls or [] -%}
        {{- "\n<tool_call>" ~ (call.function or call) | tojson ~ "</tool_call>" -}}
    {%- endfor -%}
    {{- "<|im_end|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "\n<|im_start|>assistant\n" -}}
{%- endif -%}
""".lstrip()
