"""`replay sweep` and `replay verify --sweep` from their arguments to what they print and write, mistakes included."""

import json
import struct

import polars as pl
import pytest
import yaml
from histories import History

from replay.analysis.metrics import metric_names
from replay.config import default_preset
from replay.reports.charts import draw
from replay.sources.parquet import write_trace
from replay.support.bundled_files import sweep_names
from replay.sweeps.configurations import Resolver, configurations
from replay.sweeps.plan import load_plan
from replay.sweeps.results import read_results
from replay.verification.libc_oracles import survey_libcs
from replay.verification.oracles import find_oracles
from replay.verification.rankings import verify_ranking

PNG = b"\x89PNG\r\n\x1a\n"
TWO = ("-a", "cpython-3.8", "--grid", "pymalloc.alignment=8,16")


def test_the_table_is_best_first_with_the_default_marked_and_differences_against_it(replay, source):
    code, out, err = replay(
        "sweep", source, *TWO, "--env", "MALLOC_TOP_PAD_=default,4194304", "--by", "syscalls", "--full"
    )
    assert (code, err.replace("compiling (first run only; cached) …\n", "")) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["4", "configurations", "over", f"{source}:", "4", "done"]
    first = next(number for number, line in enumerate(lines) if line[:1] == ["pymalloc.alignment"])
    assert lines[first] == ["pymalloc.alignment", "MALLOC_TOP_PAD_", "syscalls", "Δ"]
    ranked = [line[1:] if line[0] == "default" else line for line in lines[first + 1 : first + 5]]
    assert [line[0] for line in ranked] == ["1", "2", "3", "4"]
    calls = [int(line[-3 if line[-1] == "%" else -2]) for line in ranked]
    assert calls == sorted(calls)
    (default,) = [line for line in lines if line[:1] == ["default"]]
    assert default[2:4] == ["16", "default"]
    assert default[-1] == "="
    assert "Effect of each parameter on syscalls; spread of all configurations: " in out


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_the_best_are_shown_and_the_default_wherever_it_ranks_and_the_others_counted(replay, source, rows):
    _, out, _ = replay(
        "sweep", source, "-a", "cpython-3.8", "--grid", "glibc.top_pad=0,2097152,4194304,8388608", "--rows", rows
    )
    table = [line.split() for line in out.partition("glibc.top_pad")[2].splitlines()[1:]]
    shown = [line for line in table if line[:1] == ["default"] or (line[:1] and line[0].isdecimal())]
    assert [line[0] for line in shown].count("default") == 1
    assert len(shown) in (rows, rows + 1)
    hidden = 5 - len(shown)
    assert (f"\n  and {hidden} more (--full shows all)\n" in out) == (hidden > 0)


EQUAL = ("-a", "cpython-3.8", "--env", "MALLOC_ARENA_MAX=1,2,default", "--env", "MALLOC_TOP_PAD_=0,default")


def test_equal_configurations_share_a_row_and_have_their_own_on_request(replay, source):
    _, out, _ = replay("sweep", source, *EQUAL)
    table = out.partition("MALLOC_TOP_PAD_")[2].partition("\n\n")[0]
    best, default, note = [line.split() for line in table.splitlines()[1:]]
    assert (best[:3], best[-1]) == (["1", "any", "0"], "3")
    assert (default[:4], default[-1]) == (["default", "4", "any", "default"], "3")
    assert " ".join(note).startswith("equal: number of configurations with the results of the row (--full")
    _, out, _ = replay("sweep", source, *EQUAL, "--full", "--rows", 1)
    table = out.partition("MALLOC_TOP_PAD_")[2].partition("\n\n")[0]
    assert len(table.splitlines()[1:]) == 6


def test_where_all_configurations_are_equal_nothing_varied_matters(replay, source):
    _, out, _ = replay("sweep", source, *EQUAL, "--by", "requested_bytes_peak", "--by", "mallocs")
    assert "Nothing varied here matters; differences within 1 % do not matter (--within)\n" in out
    rows = [line.split() for line in out.splitlines() if "configurations are equal" in line]
    assert [(row[0], row[-4:]) for row in rows] == [
        (metric, ["6", "configurations", "are", "equal"]) for metric in ("requested_bytes_peak", "mallocs")
    ]
    assert "All within 1 %, lowest first, by requested_bytes_peak" in out
    assert "Parameters are not ranked: all configurations are within 1 %." in out
    assert "variance" not in out
    assert "Pareto" not in out


def test_the_limit_decides_whether_a_difference_matters(replay, source, tmp_path):
    replay("sweep", source, *EQUAL, "--by", "resident_bytes_peak", "--out", tmp_path / "out")
    verdicts = {}
    for within in ("0%", "100 %"):
        out = replay("sweep", "show", tmp_path / "out", "--within", within, "--json")[1]
        verdicts[within] = json.loads(out)["verdict"]
    none, all_ = verdicts.values()
    assert (none["within"], none["matters"], all_["within"], all_["matters"]) == (0.0, True, 1.0, False)
    (spread,) = none["spreads"]
    assert all_["spreads"] == [{**spread, "matters": False}]
    assert (spread["metric"], spread["source"]) == ("resident_bytes_peak", str(source))
    assert (spread["configurations"], spread["matters"]) == (6, True)
    assert spread["spread"] == spread["highest"] - spread["lowest"] > 0
    assert spread["relative_spread"] == spread["spread"] / spread["lowest"]
    shown = replay("sweep", "show", tmp_path / "out", "--within", "100%")[1]
    assert "Nothing varied here matters; differences within 100 % do not matter (--within)\n" in shown
    assert replay("sweep", "show", tmp_path / "out", "--within", "0%")[1].count("nothing varied here matters") == 0


def test_axes_start_at_zero_or_say_that_they_do_not(replay, source, tmp_path):
    pytest.importorskip("altair")
    replay("sweep", source, *EQUAL, "--out", tmp_path / "out")
    results = read_results(tmp_path / "out")
    metrics = ["resident_bytes_peak", "mallocs"]
    charts = {name: chart.to_dict() for name, chart in draw(results, metrics, within=0.0).items()}
    for chart in charts["effects"]["vconcat"]:
        assert all(layer["encoding"]["x"]["scale"]["domain"][0] == 0 for layer in chart["layer"])
    assert charts["effects"]["title"]["subtitle"].startswith("spread of all configurations: ")
    across, up = (charts["pareto"]["layer"][1]["encoding"][axis] for axis in "xy")
    assert across["scale"]["zero"] is False
    assert across["title"][1].endswith("; the axis does not start at 0")
    assert up["scale"]["zero"] is True
    assert up["title"] == ["mallocs", "spread 0 (0.0 %); nothing varied here matters"]
    charts = {name: chart.to_dict() for name, chart in draw(results, metrics, within=1.0).items()}
    assert charts["pareto"]["layer"][1]["encoding"]["x"]["scale"]["zero"] is True
    words = "all configurations are within 100 %: nothing varied here matters; spread "
    assert charts["effects"]["title"]["subtitle"].startswith(words)
    assert charts["heatmap"]["title"]["subtitle"][0].startswith(words)


def test_the_front_and_the_default_are_labelled_in_the_chart_of_two_metrics(replay, source, tmp_path):
    pytest.importorskip("altair")
    replay("sweep", source, "-a", "cpython-3.12", "--grid", "glibc.top_pad=0,64KiB,1MiB", "--out", tmp_path / "out")
    chart = draw(read_results(tmp_path / "out"), ["heap_bytes_peak", "syscalls.brk"])["pareto"].to_dict()
    (rows,) = chart["datasets"].values()
    labels = {row["label"]: row["kind"] for row in rows if row["label"]}
    assert set(labels.values()) == {"Pareto front", "default"}
    assert "glibc.top_pad=0" in labels
    assert any(label.startswith("default: glibc.top_pad=default") for label in labels)
    assert chart["title"] == {
        "text": "syscalls.brk against heap_bytes_peak",
        "subtitle": "points further to the lower left are better",
    }


def test_json_has_all_runs_the_ranking_the_effects_and_the_front(replay, source):
    code, out, _ = replay("sweep", source, *TWO, "--by", "syscalls", "--by", "blowup", "--json")
    printed = json.loads(out)
    assert code == 0
    assert list(printed) == ["runs", "verdict", "ranking", "effects", "main_effects", "pareto"]
    assert [(run["run"], run["default"], run["pymalloc.alignment"]) for run in printed["runs"]] == [
        (0, False, 8), (1, True, 16),
    ]  # fmt: skip
    assert set(metric_names()) < set(printed["runs"][0])
    assert list(printed["ranking"]) == list(printed["main_effects"]) == ["syscalls", "blowup"]
    assert {row["configuration"] for row in printed["ranking"]["blowup"]} == {0, 1}
    assert [row["value"] for row in printed["main_effects"]["syscalls"]] == ["8", "16"]
    assert printed["pareto"][0]["syscalls"] == min(run["syscalls"] for run in printed["runs"])


def test_ranges_of_the_command_line_are_those_of_a_file(replay, source, tmp_path):
    plan = {"vary": {"glibc.top_pad": {"from": 0, "to": 8192, "step": 4096}, "glibc.tcache_count": [0, 7]}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**plan, "sources": [str(source)]}, sort_keys=False))
    _, by_file, _ = replay("sweep", "--plan", tmp_path / "s.yaml", "--json")
    grids = ("--grid", "glibc.top_pad=0..8KiB:+4096", "--grid", "glibc.tcache_count=0,7")
    _, by_options, _ = replay("sweep", source, *grids, "--json")
    one, other = json.loads(by_file)["runs"], json.loads(by_options)["runs"]
    assert len(one) == 7
    assert [{**run, "wall_ns": 0} for run in one] == [{**run, "wall_ns": 0} for run in other]


def test_the_bundled_sweeps_are_listed_and_can_be_run(replay):
    code, out, _ = replay("sweep", "--list", "--json")
    assert code == 0
    names = ["every-cpython", "glibc-settings", "pymalloc-geometry", "rss-does-not-go-down"]
    assert [each["name"] for each in json.loads(out)] == names
    assert all(each["description"].endswith(".") for each in json.loads(out))
    assert all(name in replay("sweep", "--list")[1] for name in sweep_names())
    counts = [len(configurations(Resolver(load_plan(name)))) for name in sweep_names()]
    assert counts[:2] == [11, 36]
    assert counts[2] > 50


def test_points_by_latin_hypercube_are_those_of_the_seed(replay, source):
    grid = ("--grid", "glibc.top_pad=0..1MiB", "--latin", "5")
    pads = [
        [
            run["glibc.top_pad"]
            for run in json.loads(replay("sweep", source, *grid, "--choose-seed", seed, "--json")[1])["runs"]
        ]
        for seed in (3, 3, 4)
    ]
    assert pads[0] == pads[1] != pads[2]
    assert sorted(pad * 5 // (1 << 20) for pad in pads[0][1:]) == [0, 1, 2, 3, 4]


def test_written_results_can_be_shown_again_and_are_not_overwritten(replay, refused, source, tmp_path):
    out = tmp_path / "out"
    code, first, _ = replay("sweep", source, *TWO, "--out", out, "--csv")
    assert code == 0
    assert first.endswith(f"\nwritten: {out}\nnext: replay sweep show {out} --by resident_bytes_end\n")
    assert replay("sweep", "show", out) == (0, first.partition("\nwritten")[0], "")
    shown = json.loads(replay("sweep", "show", out, "--by", "syscalls", "--json")[1])
    assert list(shown["ranking"]) == ["syscalls"]
    assert pl.read_csv(out / "results.csv").height == 2
    printed = (
        f"replay: {out}: already has a sweep; continue it with --resume, choose another folder, or overwrite it with"
    )
    assert refused("sweep", source, *TWO, "--out", out).startswith(printed)
    assert replay("sweep", source, *TWO, "--out", out, "--resume")[0] == 0
    assert replay("sweep", source, *TWO, "--out", out, "--force")[0] == 0


def test_charts_are_one_page_that_needs_no_network_and_a_picture_each(replay, refused, source, tmp_path):
    pytest.importorskip("vl_convert")
    out = tmp_path / "out"
    by = ("--by", "resident_bytes_peak", "--by", "syscalls")
    _, _, err = replay("sweep", source, *TWO, "--grid", "glibc.top_pad=0,4096,1048576", *by, "--out", out, "--charts")
    names = ("sweep.html", "effects.png", "heatmap.png", "pareto.png")
    assert err.splitlines()[-1] == f"written: {', '.join(str(out / name) for name in names)}"
    page = (out / "sweep.html").read_text()
    assert "src=" not in page.partition("<script")[2].partition(">")[0]
    assert "<link" not in page
    assert f"<title>replay sweep: {source}</title>" in page
    assert all(
        title in page
        for title in ("Effect of each parameter on resident_bytes_peak", "syscalls against resident_bytes_peak")
    )
    for name in names[1:]:
        head = (out / name).read_bytes()[:24]
        assert head[:8] == PNG
        width, height = struct.unpack(">II", head[16:24])
        assert (width > 300, height > 100) == (True, True)
    code, _, err = replay("sweep", "show", out, "--charts")
    assert (code, err) == (
        2,
        f"replay: {out}/sweep.html: already exists; choose another name or overwrite it with --force\n",
    )
    assert replay("sweep", "show", out, "--charts", "--force", "--heat", "glibc.top_pad,pymalloc.alignment")[0] == 0
    code, _, err = replay("sweep", "show", out, "--charts", "--force", "--heat", "glibc.top_pad,nothing")
    assert (code, "the sweep has no parameter 'nothing'; its parameters are allocator, pymalloc.alignment" in err) == (
        2,
        True,
    )


def test_of_many_numbers_the_heat_map_shows_quarters_and_of_few_each(replay, source, tmp_path):
    pytest.importorskip("altair")
    grids = (*TWO, "--grid", "glibc.top_pad=0..11000:+1000", "--out", tmp_path / "out")
    replay("sweep", source, *grids)
    results = read_results(tmp_path / "out")
    chart = draw(results, ["syscalls"], heat=["glibc.top_pad", "pymalloc.alignment"])["heatmap"].to_dict()
    (cells,) = chart["datasets"].values()
    quarters = ["0 to 3000", "3000 to 6000", "6000 to 8000", "8000 to 11000"]
    assert [(cell["across"], cell["down"]) for cell in sorted(cells, key=lambda cell: int(cell["down"]))] == [
        (quarter, alignment) for alignment in ("8", "16") for quarter in quarters
    ]
    few = draw(results, ["syscalls"], heat=["pymalloc.alignment", "allocator"])
    assert len(next(iter(few["heatmap"].to_dict()["datasets"].values()))) == 2


def test_failed_runs_are_reported_and_the_exit_code_is_2(replay, source, tmp_path):
    history = History()
    history.malloc(1 << 47)
    broken = tmp_path / "broken.parquet"
    write_trace(history.trace(), broken)
    code, out, err = replay("sweep", source, broken, *TWO)
    assert code == 2
    assert "2 configurations over 2 traces: 2 done, 2 failed" in out
    assert "Failed: 2\n  2 × row 0: 140737488355328 bytes fit nowhere" in out
    assert err.splitlines()[-1] == "replay: 2 of 4 runs failed"


def test_an_impossible_combination_is_skipped_with_its_reason_or_refused(replay, refused, source):
    grid = (source, "--grid", "pymalloc.alignment=8,3")
    code, out, _ = replay("sweep", *grid)
    assert code == 0
    assert "Skipped: 1\n  1 × alignment: 3 is not a power of two of at least 8\n" in out
    printed = "replay: pymalloc.alignment=3 cannot be run: alignment: 3 is not a power of two of at least 8\n"
    assert refused("sweep", *grid, "--strict") == printed


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "the grid is empty: add --grid, --env, -a or --plan"),
        (["--grid", "pymalloc.alignment="], "--grid pymalloc.alignment=: the values are missing; write it like 8,16"),
        (["--grid", "pymalloc.alignment"], "--grid pymalloc.alignment: write it like pymalloc.alignment=8,16"),
        (["--grid", "a.b=[8"], "--grid a.b=[8: is not a list of values such as 8,16: expected"),
        (["--grid", "pymalloc.aligment=8"], "pymalloc.aligment: no allocator has this key; did you mean"),
        (["--grid", "alignment=8"], "--grid alignment: not a configuration key such as pymalloc.alignment"),
        ([*TWO, "--grid", "pymalloc.alignment=8"], "--grid pymalloc.alignment: given twice"),
        (["--env", "MALLOC_ARENA_MX=1"], "--env MALLOC_ARENA_MX=1: MALLOC_ARENA_MX is not modelled; did you mean"),
        (["--env", "glibc.top_pad=1"], "--env glibc.top_pad: not a variable of glibc"),
        (["-a", ","], "-a: the preset is missing"),
        (["-a", "cpython-3.88"], "cpython-3.88: no bundled config has this name; did you mean 'cpython-3.8'?"),
        ([*TWO, "--set", "glibc.top_pad=0,1"], "--set glibc.top_pad=0,1: more than one value; use --grid"),
        ([*TWO, "--random", "3", "--latin", "3"], "--random and --latin exclude each other"),
        ([*TWO, "--optimise", "syscalls", "--trials", "3", "--latin", "3"], "--optimise chooses the points; remove"),
        ([*TWO, "--optimise", "syscalls"], "--optimise METRIC and --trials N require each other"),
        ([*TWO, "--trials", "3"], "--optimise METRIC and --trials N require each other"),
        ([*TWO, "--optimise", "syscalls", "--by", "syscalls"], "--optimise and --by exclude each other"),
        ([*TWO, "--by", "resident_bytes_peek"], "objectives: unknown metric 'resident_bytes_peek'; did you mean"),
        ([*TWO, "--within", "0.01"], "--within: '0.01' is not a percentage of at most 100%; write it like 1%"),
        ([*TWO, "--within", "much"], "--within: 'much' is not a percentage"),
        ([*TWO, "--seeds", "3..1"], "--seeds 3..1: write it like 0,1,2 or 0..9"),
        ([*TWO, "--seeds", "0..99999999"], "--seeds 0..99999999: more than 10,000 seeds"),
        ([*TWO, "--resume"], "--resume requires --out DIR"),
        ([*TWO, "--csv"], "--csv requires --out DIR"),
        ([*TWO, "--charts"], "--charts requires --out DIR"),
        ([*TWO, "--heat", "a,b"], "--heat requires --charts"),
        ([*TWO, "--charts", "--out", "x", "--heat", "a,a"], "--heat a,a: name two parameters, like"),
        ([*TWO, "--out", "no/such/place"], "no/such/place: the folder "),
        ([*TWO, "--cluster", "everywhere"], "--cluster everywhere: write it like local:4 or tcp://scheduler:8786"),
        ([*TWO, "--cluster", "local:2", "--jobs", "2"], "--jobs and --cluster exclude each other"),
        (["--plan", "evry-cpython"], "evry-cpython: no bundled sweep has this name; did you mean 'every-cpython'?"),
        (["--plan", "no.yaml"], "no.yaml: cannot be read: No such file or directory"),
        ([*TWO, "--where", "alignement < 9"], "constraint 'alignement < 9' names alignement, which no stack has"),
    ],
)  # fmt: skip
def test_an_impossible_sweep_is_refused_in_a_sentence(refused, source, tmp_path, monkeypatch, arguments, printed):
    monkeypatch.chdir(tmp_path)
    assert refused("sweep", source, *arguments).startswith(f"replay: {printed}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.parquet"]


def test_a_mistake_in_a_file_is_reported_with_its_line_and_key(refused, source, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("description: wrong\nvary:\n  glibc.top_pad: {from: 0, to: 8, stpe: 4}\n")
    assert (
        refused("sweep", source, "--plan", path)
        == f"replay: {path}:3: vary.glibc.top_pad.stpe: unknown key; did you mean 'step'?\n"
    )
    path.write_text("vray: {}\n")
    assert refused("sweep", source, "--plan", path) == f"replay: {path}:1: vray: unknown key; did you mean 'vary'?\n"


def test_a_missing_source_and_a_folder_without_a_sweep_are_refused(refused, tmp_path):
    assert refused("sweep", "web-servce", *TWO).startswith("replay: web-servce: ")
    assert refused("sweep", *TWO).startswith("replay: the trace is missing; name a trace, a workload or a bundled one")
    assert (
        refused("sweep", "show", tmp_path)
        == f"replay: {tmp_path}: has no sweep; name a folder that `replay sweep --out` wrote\n"
    )


needs_pymalloc = pytest.mark.skipif(
    not find_oracles(), reason="no libpython on this machine: see `replay verify --list`"
)
needs_glibc = pytest.mark.skipif(
    not survey_libcs()[0], reason="no glibc that has a model on this machine: see `replay verify --libc --list`"
)


@needs_pymalloc
@pytest.mark.system
def test_real_pymallocs_rank_versions_as_the_sweep_does(replay, source):
    code, out, _ = replay("verify", source, "--sweep", "every-cpython", "--json")
    printed = json.loads(out)
    assert (code, printed["same"]) == (0, True)
    assert {ranking["metric"] for ranking in printed["rankings"]} == {"arena_bytes_peak", "arena_calls"}
    for ranking in printed["rankings"]:
        assert ranking["model"] == ranking["real"]
        assert ranking["figures_equal"] == len(ranking["real"]) >= 1
    assert len(printed["compared"]) + sum(printed["left_out"].values()) == 11


@pytest.mark.system
@needs_glibc
def test_the_real_glibc_ranks_its_settings_as_the_sweep_does(source):
    vary = {"MALLOC_MMAP_THRESHOLD_": ["default", 65536], "MALLOC_TOP_PAD_": ["default", 0, 1048576]}
    from replay.sweeps.plan import make_plan

    libcs = {oracle.version for oracle in survey_libcs()[0]}
    fixed = {"allocator": "cpython-3.12-malloc", "glibc.version": "2.36" if "2.36" in libcs else min(libcs)}
    verdict = verify_ranking(make_plan({"sources": [str(source)], "fixed": fixed, "vary": vary}))
    assert verdict.same
    assert {ranking.metric for ranking in verdict.rankings} >= {"syscalls"}
    for ranking in verdict.rankings:
        assert (len(ranking.real), ranking.figures_equal) == (6, 6)
        assert max(ranking.real) > 1


def test_a_sweep_that_no_real_allocator_can_take_is_refused_with_the_reasons(refused, source, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("vary: {pymalloc.alignment: [32]}\nfixed: {glibc.top_pad: 4096}\n")
    assert refused("verify", source, "--sweep", path) == (
        f"replay: --sweep {path}: no configuration can be compared with a real allocator: "
        "settings of libc are compared only without pymalloc: -a cpython-3.12-malloc; "
        f"no available CPython is like {default_preset()}, or a setting exists in no build\n"
    )
    assert "--sweep and --libc exclude each other" in refused("verify", source, "--sweep", path, "--libc")
