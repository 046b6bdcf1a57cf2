"""Row data stays data; errors that are known before the first row are raised then."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.row_files import RowFiles, WrongPathError
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.types import Image
from tests.tables import table

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8


def render(template: str, row: dict[str, Any], **more: Any) -> str:
    return Prompt(template, **more).renderer(list(row)).render(row, "k").user


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ x.__init__.__globals__ }}",
    "{{ row.__class__.__base__ }}",
    "{{ (x|attr('__class__')) }}",
    "{{ x['__class__'] }}{{ x.__class__.__name__ }}",
    "{{ '{0.__class__.__mro__}'.format(x) }}",
    "{{ '{0.__class__}'.format_map({'0': x}) }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ row.update({'x': 1}) }}",
    "{{ row.clear() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ self.__init__.__globals__ }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
]


@table("template", ESCAPES)
def test_a_template_cannot_leave_the_sandbox(template: str) -> None:
    row = {"x": "text"}
    with pytest.raises((InputError, ConfigError)) as caught:
        render(template, row)
    assert row == {"x": "text"}
    assert "root:" not in str(caught.value)


GROWING = [
    "{{ x * n }}",
    "{{ n * [x] }}",
    "{{ x ~ (x * (n // 10)) ~ (x * (n // 10)) }}",
    "{{ ((x * (n // 10)) + (x * (n // 10))) }}",
    "{% set s = namespace(x=x) %}{% for i in range(30) %}{% set s.x = s.x + s.x %}{% endfor %}{{ s.x }}",
    "{% set s = namespace(x=x) %}{% for i in range(30) %}{% set s.x = s.x ~ s.x %}{% endfor %}{{ s.x }}",
    "{% set s = namespace(x=3) %}{% for i in range(40) %}{% set s.x = s.x * s.x %}{% endfor %}{{ s.x > 1 }}",
    "{{ 10 ** n > 1 }}",
    "{{ '%100000000d' % 1 }}",
    "{{ '%*d' % (n, 1) }}",
    "{{ '%.*f' | format(n, 1.5) }}",
    "{{ '%(a)s%(a)s%(a)s' % {'a': x * (n // 20)} }}",
    "{{ '{:100000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, n) }}",
    "{{ '{a:>{b}}'.format(a=1, b=n) }}",
    "{{ '{a}{a}{a}'.format_map({'a': x * (n // 20)}) }}",
    "{{ x.ljust(n) }}",
    "{{ x.rjust(n) }}",
    "{{ x.center(n) }}",
    "{{ x.zfill(n) }}",
    "{{ x | center(n) }}",
    "{{ x | center(width=n) }}",
    "{{ [x] | batch(linecount=n, fill_with=1) | list }}",
    "{{ (1).to_bytes(length=n, byteorder='little') }}",
    "{{ x | indent(n) }}",
    "{{ 'a\\tb'.expandtabs(n) }}",
    "{{ (1).to_bytes(n, 'big') | length }}",
    "{{ ('a' * 10000).replace('a', 'b' * 10000) }}",
    "{{ ('a' * 10000) | replace('a', 'b' * 10000) }}",
    "{{ ('a' * 10000).translate('a'.maketrans({'a': 'b' * 10000})) }}",
    "{{ ([x * 10000] * 10000) | join }}",
    "{{ ''.join([x * 10000] * 10000) }}",
    "{{ range(10000) | join('b' * 10000) }}",
    "{{ ('b' * 10000).join('a' * 10000) }}",
    "{{ range(10000) | map('center', 10000) | join }}",
    "{{ ''.join(range(10000) | map('center', 10000)) }}",
    "{{ range(10000) | map('center', 10000) | list | length }}",
    "{{ [x * 10000] * 10000 }}",
    "{{ ([x * 10000] * 10000) | string }}",
    "{{ ([x * 10000] * 10000) | tojson }}",
    "{{ ([x * 10000] * 10000) | pprint }}",
    "{{ [[1]] | tojson(indent=n) }}",
    "{{ range(10000) | list | tojson(' ' * 10000) }}",
    "{{ ([{'a': x * 10000}] * 10000) | join(attribute='a') }}",
    "{{ ('a' * 10000) | wordwrap(1, wrapstring='b' * 10000) }}",
    "{{ [1] | batch(n, 'x') | list | length }}",
    "{{ [1] | slice(n) | list | length }}",
    "{{ 1.5 | round(n, 'ceil') }}",
    "{{ lipsum(n) }}",
    "{{ {'a': [x * 10000] * 10000} | xmlattr }}",
    "{% for i in range(10000) %}{{ x.ljust(10000) }}{% endfor %}",
    "{% set y %}{% for i in range(10000) %}{{ x.ljust(10000) }}{% endfor %}{% endset %}{{ y | length }}",
    "{% macro m() %}{% for i in range(10000) %}{{ x.ljust(10000) }}{% endfor %}{% endmacro %}{{ m() | length }}",
]
# Each part alone is allowed.
TOGETHER = [
    "{{ x.ljust(40000000) }}" * 120,
    "{% set y %}" + "{{ x.ljust(40000000) }}" * 120 + "{% endset %}{{ y | length }}",
    "{% macro m() %}" + "{{ x.ljust(40000000) }}" * 120 + "{% endmacro %}{{ m() | length }}",
    "{% filter upper %}" + "{{ x.ljust(40000000) }}" * 120 + "{% endfilter %}",
    "{% for i in range(120) %}{{ x.ljust(40000000) }}{% endfor %}",
]


@pytest.mark.parametrize("form", ["{{ ('%s' * 20) | format(*texts) }}", "{{ ('{}' * 20).format(*texts) }}"])
def test_of_a_format_of_many_long_texts_each_counts_once(form: str) -> None:
    assert len(render(form, {"texts": ["x" * 30_000] * 20})) == 600_000


@pytest.mark.parametrize(
    ("template", "chars"),
    [
        ("{{ 'data:image/png;base64,' ~ image }}", 12_000_022),
        ("{{ {'url': image, 'pages': [{'part': image}]} | tojson(indent=2) }}", 24_000_062),
        ("{{ ([{'name': 'a', 'image': image}] * 5) | join(', ', attribute='name') }}", 13),
        ("{% for part in [image, image] %}{{ part | upper | trim }}{% endfor %}", 24_000_000),
    ],
)
def test_an_image_of_twelve_megabytes_in_base64_is_shown_whole(template: str, chars: int) -> None:
    assert len(render(template, {"image": "QUJD" * 3_000_000})) == chars


@table("template", GROWING)
def test_a_template_that_makes_too_much_is_refused_before_it_takes_the_memory(template: str) -> None:
    assert_refused_early(template)


@table("template", TOGETHER)
def test_parts_that_are_too_much_together_are_refused_before_they_take_the_memory(template: str) -> None:
    assert_refused_early(template)


def assert_refused_early(template: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((InputError, ConfigError), match="more than 50,000,000 characters"):
            render(template, {"x": "text", "n": 100_000_000})
        assert tracemalloc.get_traced_memory()[1] < 200_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("prompt", ["{{ x }}" * 120, "{{ x }}{{ row.x }}{{ row['x'] }}", "{{ xs }}" * 120])
def test_columns_that_are_too_much_together_are_refused_with_the_row(prompt: str) -> None:
    long = "x" * 20_000_000
    columns = {"x": ["short", long], "xs": [["short"], [long]]}
    renderer = Prompt(user=prompt).renderer(list(columns))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"Row 'b': the user template failed.*more than 50,000,000 characters"):
            renderer.requests({name: columns[name] for name in renderer.columns}, ["a", "b"])
        assert tracemalloc.get_traced_memory()[1] < 200_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ '-' * 20 }}", "-" * 20),
        ("{{ 'Order 99999999999 of {}'.format(7) }}", "Order 99999999999 of 7"),
        ("{{ 'Order 99999999999: %d %%' % 7 }}", "Order 99999999999: 7 %"),
        ("{{ 99999999999 % 7 }} {{ 99999999999 * 99999999999 }} {{ 1.5 * 2 }}", "4 9999999999800000000001 3.0"),
        ("{{ '{:>8,.2f}|{:{}}'.format(n, 1, 3) }}", "    7.00|  1"),
        ("{{ '%5.1f' | format(n) }}", "  7.0"),
        ("{{ x ~ 1 ~ none ~ [x] }}", "text1None['text']"),
        ("{{ x.ljust(6) }}|{{ x | center(8) }}|{{ x | replace('t', 'T') }}", "text  |  text  |TexT"),
        (
            "{{ [x, n] | join(', ') }} {{ ', '.join([x, x]) }} {{ [x] | map('upper') | join }}",
            "text, 7 text, text TEXT",
        ),
        ("{{ {'b': n, 'a': [x]} | tojson(indent=1) }}", '{\n "a": [\n  "text"\n ],\n "b": 7\n}'),
        ("{% for i in [1, 2] | batch(3, 0) %}{{ i }}{% endfor %}{{ [1, 2] | sum }}", "[1, 2, 0]3"),
    ],
)
def test_usual_formats_make_what_they_make(template: str, text: str) -> None:
    assert render(template, {"x": "text", "n": 7}) == text


@table("template", [t for t in ESCAPES if "x." not in t and "x|" not in t and "x[" not in t])
def test_nor_can_a_system_template(template: str) -> None:
    with pytest.raises((InputError, ConfigError)):
        Prompt("{{ x }}", system=template).renderer(["x"]).render({"x": "text"}, "k")


@pytest.mark.parametrize(
    "value", ["{{ 7 * 7 }}", "{% for i in range(3) %}x{% endfor %}", "{# gone #}", "<b>&amp;</b>", "a\n", "\u2028", '"']
)
def test_a_value_that_looks_like_a_template_stays_text(value: str) -> None:
    assert render("{{ x }}|{{ row['x'] }}", {"x": value}) == f"{value}|{value}"


@given(st.text())
def test_any_text_stays_as_it_is(value: str) -> None:
    request = Prompt("{{ x }}", system="{{ x }}!").renderer(["x"]).render({"x": value}, "k")
    assert (request.user, request.system) == (value, value + "!")


def test_null_renders_as_nothing_and_zero_does_not() -> None:
    assert render("[{{ a }}][{{ b }}][{{ c }}]", {"a": None, "b": 0, "c": False}) == "[][0][False]"


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("{{ a }} of 100 %: {{ row['b'] }}"),
        Prompt("{{ b }}", system="Is {{ a }} so?"),
        Prompt("{{ a | default('') }}{{ b }}", system="Label it."),
        Prompt("the same for all"),
        Prompt("{{ a }}", images=["b"]),
    ],
    ids=["plain", "system varies", "not plain", "no column", "images"],
)
@given(rows=st.lists(st.tuples(st.text(st.characters(codec=None)) | st.none(), st.integers() | st.none()), max_size=9))
def test_some_rows_at_once_are_as_one_by_one(prompt: Prompt, rows: list[tuple[Any, Any]]) -> None:
    columns = {
        "a": [a for a, _ in rows],
        "b": [None if b is None else f"https://example.org/{b}.png" if prompt.images else b for _, b in rows],
    }
    renderer = prompt.renderer(columns)
    alone = [
        renderer.render({"a": a, "b": b}, key)
        for key, (a, b) in enumerate(zip(columns["a"], columns["b"], strict=True))
    ]
    assert renderer.requests({name: columns[name] for name in renderer.columns}, range(len(rows))) == alone


def test_of_a_wide_table_only_the_columns_are_read_that_a_template_names() -> None:
    columns = {"odd name", "a", *(f"wide {number}" for number in range(20))}
    assert Prompt('{{ row["odd name"] }}: {{ a }}', system="Label {{ row.a }}.").renderer(columns).columns == (
        "a",
        "odd name",
    )
    # A loop over the row, or a filter of it, may reach any column.
    assert set(Prompt("{{ a }}{{ row | length }}").renderer(columns).columns) == columns
    assert set(Prompt("{{ a }}", system="{{ row | length }}").renderer(columns).columns) == columns


def test_row_reaches_columns_of_any_name() -> None:
    row = {"odd name": 1, "größe": 2, "class": 3, "row": "shadowed", "range": 4, "self": 5}
    assert render('{{ row["odd name"] }}{{ größe }}{{ row["class"] }}{{ row["row"] }}', row) == "123shadowed"
    assert Prompt('{{ row["odd name"] }}').columns() is None
    assert render("{{ range }}", {"range": 4}) == "4"


def test_jinjas_own_names_are_no_columns() -> None:
    prompt = Prompt(
        "{% for i in range(3) %}{{ loop.index }}{{ x }}{% endfor %}{{ dict(a=1).a }}{% set ns = namespace(n=0) %}",
        system="{% for i in range(2) %}-{% endfor %}",
    )
    assert prompt.columns() == {"x"}
    request = prompt.renderer(["x", "y"]).render({"x": "a"}, "k")
    assert (request.system, request.user) == ("--", "1a2a3a1")
    assert prompt.renderer(["x", "y"]).columns == ("x",)


def test_an_unknown_column_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        Prompt("{{ subjct }}", system="{{ teem }}").renderer(["subject", "team"])
    assert "'subjct', 'teem', which the rows do not have" in str(caught.value)
    assert "Columns of the rows: 'subject', 'team'" in str(caught.value)


@pytest.mark.parametrize(
    ("template", "row"),
    [
        ("{{ 1 // n }}", {"n": 0}),
        ("{{ n.missing.deeper }}", {"n": None}),
        ("{{ row['absent'] }}", {"n": 1}),
        ("{{ n | join(',') }}", {"n": 3}),
        ("{{ n | round }}", {"n": "three"}),
    ],
)
def test_a_template_that_fails_names_row_part_and_columns(template: str, row: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Prompt(template).renderer(list(row)).render(row, "ticket 7")
    assert "Row 'ticket 7': the user template failed" in str(caught.value)
    assert "'n'" in str(caught.value)
    with pytest.raises(InputError, match="the system template failed"):
        Prompt("x", system=template).renderer(list(row)).render(row, "ticket 7")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ a", "line 1"),
        ("a\n{% if %}", "line 2"),
        ("{% endfor %}", "line 1"),
        ("a\n\n{{ a | no_such_filter }}", "line 3"),
        ("{{ a is no_such_test }}", "no_such_test"),
        ("{{ " + "(" * 5_000 + ")" * 5_000 + " }}", "syntax error"),
    ],
)
def test_a_template_that_is_none_is_refused_where_it_is_written(template: str, told: str) -> None:
    for part in ({"user": template}, {"user": "x", "system": template}):
        with pytest.raises(ConfigError, match="template has a syntax error") as caught:
            Prompt(**part)
        assert told in str(caught.value)
        assert str(caught.value).endswith("A column is written as {{ name }}.")


def test_a_fixed_system_part_that_fails_is_a_configuration_error_before_the_first_row() -> None:
    with pytest.raises(ConfigError, match="The system template failed: ZeroDivisionError"):
        Prompt("x", system="{{ 1 // 0 }}").renderer(["a"])


def test_templates_come_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "user.j2").write_text("Größe: {{ n }}\n", encoding="utf-8")
    assert Prompt.from_files(tmp_path / "user.j2").renderer(["n"]).render({"n": 1}, "k").user == "Größe: 1"
    with pytest.raises(ConfigError, match=r"gone\.j2' cannot be read"):
        Prompt.from_files(tmp_path / "gone.j2")
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        Prompt.from_files(tmp_path / "latin")


# images -------------------------------------------------------------------------------------------------------------


@table(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a..", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
    ],
)
@table("kind", [bytes, bytearray, memoryview])
def test_bytes_are_an_image_of_the_kind_they_start_with(data: bytes, media_type: str, kind: Any) -> None:
    renderer = Prompt("{{ x }}", images=["pic"]).renderer(["x", "pic"])
    request = renderer.render({"x": 1, "pic": kind(data)}, "k")
    assert request.images == (Image(media_type, data),)
    assert set(renderer.columns) == {"x", "pic"}


def test_a_url_is_passed_on_and_a_null_is_no_image() -> None:
    renderer = Prompt("{{ x }}", images=["a", "b"]).renderer(["x", "a", "b"])
    request = renderer.render({"x": 1, "a": "https://example.org/a.png", "b": None}, "k")
    assert request.images == (Image(url="https://example.org/a.png"),)


@pytest.mark.parametrize("value", [b"", b"<svg/>", 5, "cat.png", "file:///etc/passwd", "javascript:alert(1)"])
def test_what_is_no_image_is_refused_naming_row_and_column(value: Any) -> None:
    renderer = Prompt("x", images=["pic"]).renderer(["pic"])
    with pytest.raises(InputError, match=r"Row 7: .*'?pic'?"):
        renderer.render({"pic": value}, 7)


def test_a_path_is_loaded_by_what_the_caller_allows() -> None:
    def load(path: str) -> bytes:
        if path != "a/cat.png":
            raise WrongPathError("leads out")
        return PNG

    renderer = Prompt("x", images=["pic"], image_root="ignored here").renderer(["pic"], RowFiles(load_image=load))
    assert renderer.render({"pic": "a/cat.png"}, 1).images == (Image("image/png", PNG),)
    with pytest.raises(InputError, match=r"Row 1: the image in column 'pic' cannot be read: '\.\./x' leads out"):
        renderer.render({"pic": "../x"}, 1)


def test_lists_given_as_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"images=\['pic'\]"):
        Prompt("x", images="pic")


@pytest.mark.slow
@given(
    st.lists(
        st.sampled_from(["{{ a }}", "{{ b|e }}", "{{ row.a }}", "{{ row['b'] }}", "{{ row.items }}", " text\n", "%"])
    ),
    st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.booleans(), st.lists(st.integers())),
)
def test_a_template_of_columns_alone_renders_as_jinja_renders_it(parts: list[str], value: object) -> None:
    """Add an empty branch to the second template, so that Jinja itself renders it."""
    row, template = {"a": value, "b": "B"}, "".join(parts)
    # The text of a method holds the address of the row, which differs each time.
    plain, jinja = (
        re.sub("0x[0-9a-f]+", "", render(source, row))
        for source in (template, f"{{% if false %}}{{% endif %}}{template}")
    )
    assert plain == jinja


@table(
    ("template", "text"),
    [
        ("{{ x }}{{ row.x }}{{ row['x'] }}", ""),
        ("{{ x | upper }}{{ x | trim }}{{ x | string }}{{ x | title }}{{ x | replace('a', 'b') }}{{ x | e }}", ""),
        ("{{ 'a' ~ x }}", "a"),
        ("{{ '%s' | format(x) }}{{ '{}'.format(x) }}", ""),
        ("{{ x[:10] }}{{ x | truncate(5) }}{{ x | length }}", "0"),
        ("{% for each in x %}{{ each }}{% endfor %}", ""),
        ("{{ x or 'n/a' }}", "n/a"),
        ("{{ x | default('n/a', true) }}", "n/a"),
        (
            "{{ x is none }}{{ x is not none }}{{ x == none }}{{ x is defined }}{{ y is none }}",
            "TrueFalseTrueTrueFalse",
        ),
        ("{% if x %}yes{% else %}no{% endif %}", "no"),
        ("{{ [x, y] | join('+') }}", "+Y"),
        ("{{ [x, y] | select | join('+') }}", "Y"),
        ("{{ {'x': x} | tojson }}", '{"x": null}'),
        (
            "{{ nested.x | upper }}{{ nested | tojson }}{{ nested.list | join('-') }}",
            '{"list": [null, 1], "x": null}-1',
        ),
        ("{{ nested.list }}", "[null, 1]"),
    ],
)
def test_a_null_is_never_the_word_none(template: str, text: str) -> None:
    assert render(template, {"x": None, "y": "Y", "nested": {"x": None, "list": [None, 1]}}) == text


@pytest.mark.parametrize("template", ["{{ x.strip() }}", "{{ x + 1 }}", "{{ x > 1 }}", "{{ x['a'] }}"])
def test_what_a_null_cannot_do_is_refused_naming_the_row(template: str) -> None:
    with pytest.raises(InputError, match="Row 'k': the user template failed"):
        render(template, {"x": None})
