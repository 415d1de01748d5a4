# SPDX-License-Identifier: LGPL-2.1-or-later
"""results.json as tables (report.md) and charts (*.svg)."""
import statistics

from .links import LINKS
from .plot import line_chart
from .scenarios import SCENARIOS
from .systems import SYSTEMS


def groups(runs):
    """{(scenario, link, system): runs that converged}, in the order of the tables."""
    order = list(SCENARIOS), list(LINKS), list(SYSTEMS)

    def rank(key):
        return tuple(o.index(k) if k in o else 99 for o, k in zip(order, key))
    found = {}
    for r in runs:
        found.setdefault((r["scenario"], r["link"], r["system"]), []).append(r)
    return {k: found[k] for k in sorted(found, key=rank)}


def value(run, path):
    for key in path.split("."):
        run = (run or {}).get(key)
    return run


def stats(runs, path):
    """(median, least, most) or None."""
    values = [v for v in (value(r, path) for r in runs if r.get("converged", True)) if v is not None]
    return (statistics.median(values), min(values), max(values)) if values else None


def cell(s, scale, digits):
    if s is None:
        return "-"
    middle, low, high = (f"{v / scale:.{digits}f}" for v in s)
    return middle if low == high else f"{middle} ({low}-{high})"


def ratio(mine, plain):
    if not mine or not plain or not plain[0]:
        return "-"
    return f"{100 * mine[0] / plain[0]:.2f} %"


COLUMNS = [("wire, MB", "wire_bytes", 1e6, 2), ("time, s", "total_ms", 1e3, 2),
           ("pause, ms", "downtime_ms", 1, 0), ("CPU source, s", "cpu_ms.source", 1e3, 2),
           ("CPU dest, s", "cpu_ms.dest", 1e3, 2), ("RSS source, MB", "rss_bytes.source", 1e6, 0),
           ("RSS dest, MB", "rss_bytes.dest", 1e6, 0)]


def table(scenario, found):
    """One scenario over all links and systems."""
    rows = {k: v for k, v in found.items() if k[0] == scenario}
    out = ["| link | system | n | " + " | ".join(c[0] for c in COLUMNS) +
           " | wire : plain | time : plain |",
           "| --- | --- | ---: |" + " ---: |" * (len(COLUMNS) + 2)]
    for (_, link, system), runs in rows.items():
        plain = rows.get((scenario, link, "plain"), [])
        failed = sum(not r.get("converged", True) for r in runs)
        n = f"{len(runs)}" + (f" ({failed} did not converge)" if failed else "")
        cells = [cell(stats(runs, path), scale, digits) for _, path, scale, digits in COLUMNS]
        cells += [ratio(stats(runs, p), stats(plain, p)) for p in ("wire_bytes", "total_ms")]
        out.append(f"| {link} | {system} | {n} | " + " | ".join(cells) + " |")
    return out + notes(rows)


def notes(rows):
    out = []
    for (_, link, system), runs in rows.items():
        gaps = [r["guest_gap_ms"] for r in runs if r.get("guest_gap_ms")]
        downs = [r["downtime_ms"] for r in runs if r.get("downtime_ms") is not None]
        if gaps and downs:
            out.append(f"- {system}, {link}: worst pause {max(downs):.0f} ms in {len(downs)} runs, "
                       f"longest silence of the guest {max(gaps):.0f} ms")
        firsts = [r["first_attempt"] for r in runs if r.get("first_attempt")]
        if firsts:
            middle = statistics.median(f["wire_bytes"] for f in firsts)
            out.append(f"- {system}, {link}: the attempt before it had sent {middle / 1e6:.1f} MB")
        slow = {r["store"]["slow_by"] for r in runs if r.get("store", {}).get("slow_by")}
        if slow:
            out.append(f"- {system}, {link}: reading from disk held to "
                       f"{runs[0]['store']['read_bps'] / 1e6:.0f} MB/s by a {', '.join(slow)}")
        cached = [r["store"]["store_cached_bytes"] for r in runs if "store" in r]
        if cached:
            out.append(f"- {system}, {link}: of the stores ({runs[0]['store']['store_bytes'] / 1e6:.0f} "
                       f"MB), at most {max(cached) / 1e6:.1f} MB was in the page cache before")
        passed = [r["reason"] for r in runs if r.get("passthrough")]
        if passed:
            out.append(f"- {system}, {link}: reuse was off: {passed[0]}")
    return [""] + out if out else []


def offline_tables(offline):
    names = list(dict.fromkeys(o["scenario"] for o in offline))
    tools = list(dict.fromkeys(o["tool"] for o in offline))
    by = {(o["scenario"], o["tool"]): o for o in offline}
    sent = {o["scenario"]: o["vecycle_bytes"] for o in offline}  # the same with each tool
    out = ["| scenario | vecycle | " + " | ".join(tools) + " |",
           "| --- | ---: |" + " ---: |" * len(tools)]
    for name in names:
        cells = [f"{sent[name] / 1e6:.2f} MB"]
        for tool in tools:
            o = by.get((name, tool))
            cells.append(f"{o['bytes'] / 1e6:.2f} MB, {o['seconds']:.1f} s "
                         f"({sent[name] / o['bytes']:.2f})" if o else "-")
        out.append(f"| {name} | " + " | ".join(cells) + " |")
    return out


def micro_table(micro):
    out = []
    for m in micro:
        facts = ", ".join(f"{k} {v:.4g}" if isinstance(v, (int, float)) else f"{k} {v}"
                          for k, v in m.items() if k != "bench")
        out.append(f"- **{m['bench']}**: {facts}")
    return out


def charts(found, where):
    """Time and bytes against the share that changed; 0 is the idle return. Returns file names."""
    made = []
    for link in LINKS:
        for what, path, scale, unit in (("time", "total_ms", 1e3, "s"),
                                        ("bytes", "wire_bytes", 1e6, "MB on the wire")):
            series = {}
            for (scenario, l, system), runs in found.items():
                if l != link or not (scenario.startswith("changed-") or scenario == "idle-return"):
                    continue
                s = stats(runs, path)
                if s:
                    x = int(scenario.split("-")[1]) if scenario != "idle-return" else 0
                    series.setdefault(system, []).append((x, *(v / scale for v in s)))
            if not any(len(points) > 1 for points in series.values()):
                continue
            name = f"{what}-{link}.svg"
            title = f"Return over {LINKS[link].title}"
            (where / name).write_text(line_chart(title, "% of the memory changed", unit, series))
            made.append(name)
    return made


def write(results, where):
    found = groups(results["runs"])
    m = results["machine"]
    out = ["# Benchmark of vecycle", "",
           f"{m['date']}: {m['cpu']}, {m['cores']} cores, {m['memory_bytes'] / 2 ** 30:.0f} GiB, Linux "
           f"{m['kernel']}, {m['qemu']}, {'KVM' if m['kvm'] else 'emulated processors (TCG)'}, load "
           f"{m['load_before']:.1f} before.", "",
           "Medians, in brackets least and most. *Wire* is what the hosts' interfaces sent, both "
           "directions, headers included. *Time* is from the command to RESUME at the destination, "
           "*pause* from STOP at the source to RESUME. *CPU* is that of QEMU without its guest and of "
           "vecycle's agent; *RSS* the agent's peak.", ""]
    for scenario in dict.fromkeys(k[0] for k in found):
        runs = [r for k, v in found.items() if k[0] == scenario for r in v]
        ram, used = stats(runs, "ram_bytes"), stats(runs, "nonzero_bytes")
        out += [f"## {scenario}", "", f"RAM {cell(ram, 2 ** 20, 0)} MiB, in use "
                f"{cell(used, 2 ** 20, 0)} MiB.", "", *table(scenario, found), ""]
    if results.get("offline"):
        out += ["## Tools on the two memory images", "",
                "Bytes that would make the memory on return out of the one that the host still has. In "
                "brackets: what vecycle has sent for the same change, on the wire, beside that.",
                "", *offline_tables(results["offline"]), ""]
    images = charts(found, where)
    if images:
        out += ["## Charts", ""] + [f"![{name}]({name})" for name in images] + [""]
    if results.get("micro"):
        out += ["## Micro benchmarks", ""] + micro_table(results["micro"]) + [""]
    for title, key in ("What failed", "failures"), ("What was left out for lack of time", "skipped"):
        if results.get(key):
            out += [f"## {title}", ""] + [f"- {t}" for t in results[key]] + [""]
    (where / "report.md").write_text("\n".join(out))
