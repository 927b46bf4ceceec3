"""The reference page of the environment variables, made from their registry."""

from __future__ import annotations

from tunebook._envfields import FALSE_WORDS, TRUE_WORDS
from tunebook.envs import PREFIX, Envs

_PAGE = """\
# Environment variables

<!-- Generated from src/tunebook/envs.py by scripts/generate_docs.py: change it there. -->

tunebook reads the variables below and no others. `tunebook env` lists them with their current values and where each
value comes from; `tunebook env --json` does so for programs.

| variable | type | default |
| --- | --- | --- |
{table}

## Rules

- **What goes before what.** An argument given in code or on the command line goes before a variable, and a variable
  before its default.
- **Aliases.** Some variables are also read from another name. The variable's own name always goes before an alias, even
  when both are set; what was set and not used is logged. A wrong value in an alias that belongs to another project is
  answered with one warning and passed over, as if it were not set.
- **Booleans** are {true}, or {false}, in any case.
- **Blanks** around a value do not matter, and an empty value counts as unset.
- **None.** Where the type says "or none", the word `none` is accepted for it.
- **Wrong values are errors.** The message names the variable, the value and what is accepted; nothing falls back to a
  default in silence.
- **Misspelt names** that begin with `{prefix}` are warned about, with the nearest name that exists.

## Variables

{sections}
## Tuning afresh, without the cache

    TUNEBOOK_AUTOTUNE_CACHE=0 tunebook tune

tunes everything again from the start. The result goes to a file of its own, beside the cache:

    runs/<cache stem>.<YYYYmmdd_HHMMSS>[-n].jsonl

`<cache stem>` is the cache's file name without its ending (`winners` for `winners.json`), the timestamp is the local
time of the start, and `-n` is added when a file of that name is there already, so that two tunings within one second
get two files. One start writes one file. The cache is neither read nor touched: it stays the same byte for byte, and
the next start without the variable uses it as before. Whatever reads a cache reads such a file too.

Left on 0, every start pays for a full tuning; the log says how many seconds that was.
"""


def markdown() -> str:
    """The reference page `docs/environment.md`; made from the registry alone, so the same on every machine."""
    table, sections = [], []
    for field in Envs.fields():
        anchor = field.name.lower()
        table.append(f"| [`{field.name}`](#{anchor}) | {field.type_name} | {field.default_text} |")
        facts = [f"- type: {field.type_name}", f"- accepted: {field.accepts}", f"- default: {field.default_text}"]
        for alias in field.aliases:
            notes = [f"owned by {alias.owner}"] if alias.foreign else []
            notes += ["deprecated"] if alias.deprecated else []
            facts.append(f"- alias: `{alias.name}`" + (f" ({', '.join(notes)})" if notes else ""))
        if field.deprecated is not None:
            facts.append(f"- deprecated: {field.deprecated}")
        sections.append("\n".join([f"### {field.name}", "", field.help, "", *facts, ""]))
    return _PAGE.format(
        table="\n".join(table),
        sections="\n".join(sections),
        true=", ".join(f"`{word}`" for word in TRUE_WORDS),
        false=", ".join(f"`{word}`" for word in FALSE_WORDS),
        prefix=PREFIX,
    )
