"""The tables of the records of service.py and efficiency.py: the costs of a network and of an API."""

from __future__ import annotations

from typing import Any

from .memory import KIB
from .output import cells, markdown, measured_on

SHARE = {
    "algorithm": "{algorithm}",
    "texts (tokens)": "{texts} ({tokens})",
    "at home": "{home_ms[median]:.1f} ({home_ms[min]:.1f} to {home_ms[max]:.1f})",
    "remote": "{remote_ms[median]:.1f} ({remote_ms[min]:.1f} to {remote_ms[max]:.1f})",
    "remote, outside the model": "{outside_ms[median]:.1f} ({outside_ms[min]:.1f} to {outside_ms[max]:.1f})",
    "its share": "{share_outside:.1%}",
    "remote / home": "{remote_over_home:.3f}",
}
EFFICIENCY = {
    "model, task, algorithm": "{model}, {task}, {algorithm}",
    "queries": "{queries}",
    "user: search": "{search_mib:.0f}",
    "user: process": "{user_mib[process]:.0f}",
    "server": "{server_mib:.0f}",
    "texts up, once": "{kib[texts_up]:.0f} KiB",
    "prompts up / logits down": "{kib[prompts_up]:.1f} KiB / {per_query_bytes[logits_down]:.0f} B",
    "z up / losses down": "{kib[z_up]:.1f} KiB / {per_query_bytes[losses_down]:.0f} B",
    "training, at home": "{tune_seconds[home]:.1f} s",
    "over the network": "{tune_seconds[remote]:.1f} s",
    "CPU, at home": "{cpu_seconds[home]:.0f} s",
    "CPU, user + server": "{cpu_seconds[user]:.0f} + {cpu_seconds[server]:.0f} s",
}
"""The columns of each table and the formats of their cells."""


def share_table(record: dict[str, Any]) -> str:
    """Return a record of service.py as Markdown."""
    load, memory = record["load"], record["load"]["server_mib"]
    rows = [cells(SHARE, row | {"algorithm": name}) for name, row in record["generation"].items()]
    lines = [
        f"**service**: `{record['model']}` on {record['engine']} in {record['precision']}, at home and behind a server "
        f"on loopback, in turns, median (min to max) of {record['rounds']} rounds; milliseconds of a generation of "
        f"{record['population']} candidates on texts of {record['task']}'s lengths. "
        + measured_on(record["environment"]),
        "",
        *markdown(SHARE, "lr", rows),
        "",
        f"The server of the demo answered {load['requests']:,} requests of {load['clients']} clients of one process, "
        f"{load['requests_per_s']:.0f} a second: half within {load['p50_ms']:.1f} ms, 99 % within {load['p99_ms']:.1f} "
        f"ms. Its memory was {memory[0]:.1f} MiB after a tenth of them and {memory[-1]:.1f} MiB at the end; over the "
        f"last half it grew by {load['growth_kib_per_1000_requests']:.0f} KiB per 1,000 requests.",
    ]
    return "\n".join(lines)


def efficiency_table(record: dict[str, Any]) -> str:
    """Return a record of efficiency.py as Markdown."""
    rows = []
    for row in record["rows"]:
        user, sent = row["user_mib"], row["per_query_bytes"] | {"texts_up": row["texts_up_bytes"]}
        kib = {name: number / KIB for name, number in sent.items()}
        rows.append(cells(EFFICIENCY, row | {"search_mib": user["search"] + user["projection"], "kib": kib}))
    lines = [
        f"**efficiency**: {record['engine']} in {record['precision']} behind `bbt-fast serve` on loopback, the tuner "
        "in another process. Bytes as counted on the wire, per query; memory in MiB, of the search alone (CMA-ES and "
        f"the projection) and the peak of each process. {measured_on(record['environment'])}",
        "",
        *markdown(EFFICIENCY, "lr", rows),
    ]
    return "\n".join(lines)
