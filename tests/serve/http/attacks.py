"""Answers that try to run something in the page, and the elements that an answer may become."""

ATTACKS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<svg onload='window.hit = 1'><circle/></svg>",
    "[press](javascript:window.hit=1)",
    "[press](data:text/html,<script>parent.hit=1</script>)",
    "![picture](x' onerror='window.hit=1)",
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "<a href='https://example.com' onclick='window.hit=1' class='icon-button' style='position:fixed'>x</a>",
    "<form action='https://example.com'><input type=submit></form>",
    "<math><mtext><table><mglyph><style><img src=x onerror='window.hit = 1'>",
    "```html\n<script>window.hit = 1</script>\n```",
    "```\"><img src=x onerror=window.hit=1>\nx\n```",
    "<details open ontoggle='window.hit=1'>",
    "- [x] <input autofocus onfocus='window.hit=1'>",
]  # fmt: skip


ALLOWED = {
    *("p", "br", "strong", "em", "del", "code", "pre", "ul", "ol", "li", "blockquote", "a", "hr", "input", "span"),
    *(
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
        "button",
        "div",
    ),
}
