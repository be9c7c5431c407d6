"""The tables of the records of service.py and efficiency.py: what a network costs, and what an API would."""

from __future__ import annotations

from typing import Any

from .memory import KIB

TIMES = ("home_ms", "remote_ms", "outside_ms")


def share_table(record: dict[str, Any]) -> str:
    """Return a record of service.py as Markdown."""
    load = record["load"]
    lines = [
        f"**service**: `{record['model']}` on {record['engine']} in {record['precision']}, at home and behind a server "
        f"on loopback, in turns, median (min to max) of {record['rounds']} rounds; milliseconds of a generation of "
        f"{record['population']} candidates on texts of {record['task']}'s lengths. {_about(record)}",
        "",
        "| algorithm | texts (tokens) | at home | remote | remote, outside the model | its share | remote / home |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in record["generation"].items():
        times = [f"{row[k]['median']:.1f} ({row[k]['min']:.1f} to {row[k]['max']:.1f})" for k in TIMES]
        lines.append(
            f"| {name} | {row['texts']} ({row['tokens']}) | {' | '.join(times)} | {row['share_outside']:.1%} | "
            f"{row['remote_over_home']:.3f} |"
        )
    memory = load["server_mib"]
    lines += [
        "",
        f"The server of the demo answered {load['requests']:,} requests of {load['clients']} clients of one process, "
        f"{load['requests_per_s']:.0f} a second: half within {load['p50_ms']:.1f} ms, 99 % within {load['p99_ms']:.1f} "
        f"ms. Its memory was {memory[0]:.1f} MiB after a tenth of them and {memory[-1]:.1f} MiB at the end; over the "
        f"last half it grew by {load['growth_kib_per_1000_requests']:.0f} KiB per 1,000 requests.",
    ]
    return "\n".join(lines)


def efficiency_table(record: dict[str, Any]) -> str:
    """Return a record of efficiency.py as Markdown."""
    lines = [
        f"**efficiency**: {record['engine']} in {record['precision']} behind `bbt-fast serve` on loopback, the tuner "
        "in another process. Bytes as counted on the wire, per query; memory in MiB, of the search alone (CMA-ES and "
        f"the projection) and the peak of each process. {_about(record)}",
        "",
        "| model, task, algorithm | queries | user: search | user: process | server | texts up, once | prompts up / "
        "logits down | z up / losses down | training, at home | over the network | CPU, at home | CPU, user + server |",
        "| --- |" + " ---: |" * 11,
    ]
    for row in record["rows"]:
        user, sent, took, cpu = (row[key] for key in ("user_mib", "per_query_bytes", "tune_seconds", "cpu_seconds"))
        cells = [
            f"{row['model']}, {row['task']}, {row['algorithm']}",
            f"{row['queries']}",
            f"{user['search'] + user['projection']:.0f}",
            f"{user['process']:.0f}",
            f"{row['server_mib']:.0f}",
            f"{row['texts_up_bytes'] / KIB:.0f} KiB",
            f"{sent['prompts_up'] / KIB:.1f} KiB / {sent['logits_down']:.0f} B",
            f"{sent['z_up'] / KIB:.1f} KiB / {sent['losses_down']:.0f} B",
            f"{took['home']:.1f} s",
            f"{took['remote']:.1f} s",
            f"{cpu['home']:.0f} s",
            f"{cpu['user']:.0f} + {cpu['server']:.0f} s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _about(record: dict[str, Any]) -> str:
    about = record["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{about['device']}, {about['threads']} threads, {packages}; commit {about['commit']}."
