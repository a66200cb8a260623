"""Shows what the check of a dataset found, and its rows, some at a time. It changes nothing."""

import csv
import io
from base64 import b64encode
from functools import partial

import altair as alt
import pandas as pd
import streamlit as st

from services.ui.client import GatewayError, Json
from services.ui.text import plain_markdown, words
from services.ui.tuning import Tuning
from shared.training.report import read_lines
from shared.training.states import OF_REVIEWS

_PAGE = 5
_PICTURE_PX = 240
_COLOUR = "#0f6e84"


def show(dataset: Json) -> None:
    """Figures and plots of the report."""
    report = dataset["report"]
    out = report["rows_out"]
    columns = st.columns(4)
    columns[0].metric("Rows read", f"{report['rows_in']:,}")
    columns[1].metric("To train on", f"{out.get('train', 0):,}")
    columns[2].metric("Held out", f"{out.get('validation', 0):,}")
    columns[3].metric("Set aside", f"{out.get('quarantine', 0):,}")
    st.caption(_how_read(report))
    for note in report["notes"]:
        st.info(note)
    _tokens(report)
    _dropped(report)
    _copies(report)
    _people(report)
    _dangerous(report)
    _languages(report)


def _how_read(report: Json) -> str:
    columns = ", ".join(f"{part} ← {column}" for part, column in report["mapping"].items())
    read = set(report["mapping"].values())
    unused = ", ".join(column for column in report["columns"] if column not in read)
    read_as = columns + (f"; not used: {unused}" if unused else "")
    parts = [f"Read as **{words(report['shape'])}**: {plain_markdown(read_as)}"]
    if report["images"]:
        parts.append(f"{report['images']:,} pictures")
    if report["groups"] is not None:
        parts.append(f"{report['groups']:,} groups, {report['groups_validation'] or 0:,} of them held out")
    return " · ".join(parts)


def _tokens(report: Json) -> None:
    st.subheader("Length")
    histogram = report["tokens"]
    frame = pd.DataFrame(
        {
            "from": histogram["edges"][:-1],
            "to": histogram["edges"][1:],
            "rows": histogram["counts"],
        }
    )
    chart = (
        alt.Chart(frame)
        .mark_bar(color=_COLOUR)
        .encode(
            x=alt.X("from:Q", title="tokens in a row", bin="binned"),
            x2="to:Q",
            y=alt.Y("rows:Q", title="rows", axis=alt.Axis(tickMinStep=1)),
            tooltip=["from", "to", "rows"],
        )
    )
    st.altair_chart(chart.properties(height=200), width="stretch")
    lost = f"; {report['truncated']:,} rows were longer than {report['max_tokens']:,} and are left out"
    st.caption(
        f"The longest has {report['longest_tokens']:,} tokens" + (lost if report["truncated"] else "") + "."
    )


def _dropped(report: Json) -> None:
    st.subheader("Rows left out")
    if not report["dropped"]:
        st.caption("None: every row can be used.")
        return
    _bars({words(each["reason"]): each["count"] for each in report["dropped"]}, "rows")
    table = [
        {"line": row["line"], "reason": words(each["reason"]), "what to do": row["advice"]}
        for each in report["dropped"]
        for row in each["rows"]
    ]
    st.dataframe(pd.DataFrame(table).sort_values("line"), hide_index=True, width="stretch")
    unlisted = [each for each in report["dropped"] if each["count"] > len(each["rows"])]
    for each in unlisted:
        st.caption(
            f"Listed are the first {len(each['rows']):,} of {each['count']:,}: {words(each['reason'])}."
        )
    if any("all_lines" in each for each in unlisted):  # a report of an earlier release has none
        label, dropped = "Save all rows left out (CSV)", report["dropped"]
        table = partial(rows_left_out, dropped)
        st.download_button(label, table, "rows_left_out.csv", "text/csv", on_click="ignore")


def rows_left_out(dropped: list[Json]) -> str:
    """A table, as CSV, of every row that is not trained on: its line, why, and what to do about it."""
    table = [
        (line, words(each["reason"]), own.get(line, each["advice"]))
        for each in dropped
        for own in [{row["line"]: row["advice"] for row in each["rows"]}]
        for line in read_lines(each["all_lines"])
    ]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("line", "reason", "what to do"), *sorted(table)])
    return file.getvalue()


def _lines(lines: list[int], count: int) -> str:
    """The lines of a finding, and how many of all they are where the report has not all."""
    named = ", ".join(map(str, lines))
    return named if count <= len(lines) else f"{named} (the first {len(lines):,} of {count:,})"


def _copies(report: Json) -> None:
    st.caption(
        f"Exact copies: {report['exact_duplicates']:,} · near copies: {report['near_duplicates']:,} · "
        f"copies of held-out rows: {report['overlap']:,} · "
        f"not English: {sum(_others(report).values()):,}"
    )


def _people(report: Json) -> None:
    st.subheader("What identifies people")
    phi = report["phi"]
    if not phi["rows"]:
        st.caption("Nothing was found. A detector misses things: look at some rows yourself.")
        return
    done = {"mask": "masked", "quarantine": "set aside", "reject": "refused"}[phi["policy"]]
    rows = "1 row, which was" if phi["rows"] == 1 else f"{phi['rows']:,} rows, which were"
    st.warning(f"Found in {rows} {done}.", icon=":material/badge:")
    st.caption(f"On lines {_lines(phi['lines'], phi['rows'])}")
    _bars({words(kind).lower(): times for kind, times in phi["by_type"].items()}, "times")


def _bars(counts: dict[str, int], title: str) -> None:
    frame = pd.DataFrame({"name": counts.keys(), "count": counts.values()})
    chart = (
        alt.Chart(frame)
        .mark_bar(color=_COLOUR)
        .encode(
            x=alt.X("count:Q", title=title, axis=alt.Axis(format="d", tickMinStep=1)),
            y=alt.Y("name:N", sort="-x", title=None, axis=alt.Axis(labelLimit=0)),
            tooltip=["name", "count"],
        )
    )
    st.altair_chart(chart.properties(height=alt.Step(24)), width="stretch")


def _dangerous(report: Json) -> None:
    if not report["dangerous"]:
        return
    st.subheader("Answers that the guard would not let out")
    table = [
        {
            "category": words(each["category"]),
            "rows": each["count"],
            "lines": _lines(each["lines"], each["count"]),
        }
        for each in report["dangerous"]
    ]
    st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")
    st.caption("They are set aside and not trained on.")


def _others(report: Json) -> dict[str, int]:
    """Rows by language, without those in English and those of which it cannot be told."""
    return {code: rows for code, rows in report["languages"].items() if code not in ("en", "und")}


def _languages(report: Json) -> None:
    others = _others(report)
    if others:
        named = ", ".join(f"{code} ({rows:,})" for code, rows in others.items())
        st.warning(
            f"Not every row is English: {named}. The guard reads English only.", icon=":material/translate:"
        )
        st.caption(f"On lines {_lines(report['not_english_lines'], sum(others.values()))}")


def show_rows(tuning: Tuning, dataset: Json) -> None:
    """A few rows at a time; reading them is an event of the log."""
    st.subheader("Rows")
    if dataset["source"] == OF_REVIEWS:
        st.info(
            "These rows are people's questions with corrected answers, so they are not shown to admins: read "
            "the counts and the report above. An auditor can look through the corrections (page Reports).",
            icon=":material/visibility_off:",
        )
        return
    if not st.toggle("Show rows (this is logged)", key=f"rows-{dataset['id']}"):
        return
    split = st.segmented_control(
        "Which",
        ["train", "validation", "quarantine"],
        default="train",
        format_func={"train": "to train on", "validation": "held out", "quarantine": "set aside"}.get,
        key=f"split-{dataset['id']}",
    )
    place = f"offset-{dataset['id']}-{split}"
    offset = st.session_state.setdefault(place, 0)
    page = tuning.rows(dataset["id"], split or "train", offset, _PAGE)
    if not page["items"]:
        st.caption("There are no such rows.")
    for row in page["items"]:
        _row(tuning, dataset["id"], row)
    earlier, later, where = st.columns([0.2, 0.2, 0.6], vertical_alignment="center")
    if earlier.button("Earlier", disabled=offset == 0):
        st.session_state[place] = max(0, offset - _PAGE)
        st.rerun()
    if later.button("Later", disabled=page["next_offset"] is None):
        st.session_state[place] = page["next_offset"]
        st.rerun()
    if page["items"]:
        where.caption(f"{offset + 1}–{offset + len(page['items'])} of {page['total']:,}")


def _row(tuning: Tuning, dataset_id: str, row: Json) -> None:
    with st.container(border=True):
        if row.get("reason"):
            st.caption(f"line {row['line']} · {words(row['reason'])}")
        for message in row["messages"]:
            st.markdown(f"**{message['role']}**  \n{plain_markdown(message['content'])}")
        if row["image"]:
            _picture(tuning, dataset_id, row["image"])


def _picture(tuning: Tuning, dataset_id: str, sha256: str) -> None:
    try:
        png = tuning.image(dataset_id, sha256)
    except GatewayError as error:
        st.caption(f":material/broken_image: The picture cannot be shown. {plain_markdown(error.detail)}")
        return
    # within the page: what Streamlit serves at an address of its own asks nobody who they are
    st.image(f"data:image/png;base64,{b64encode(png).decode()}", width=_PICTURE_PX)
