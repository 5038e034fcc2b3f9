"""Allocator stacks: values of presets, files, overrides, and error messages."""

import sys
from pathlib import Path

import pytest

from replay.config import default_preset, load_config
from replay.support.bundled_files import config_names
from replay.support.errors import ConfigError

KIB, MIB = 1 << 10, 1 << 20

# alignment, arena, pool, header, release, radix tree, address bits, word size; from each version's obmalloc.c
GEOMETRY = {
    "cpython-2.7": (8, 256 * KIB, 4 * KIB, 48, "immediate", False, 64, 8),
    "cpython-3.6": (8, 256 * KIB, 4 * KIB, 48, "immediate", False, 64, 8),
    "cpython-3.7": (16, 256 * KIB, 4 * KIB, 48, "immediate", False, 64, 8),
    "cpython-3.8": (16, 256 * KIB, 4 * KIB, 48, "immediate", False, 64, 8),
    "cpython-3.9": (16, 256 * KIB, 4 * KIB, 48, "keep-last", False, 64, 8),
    "cpython-3.10": (16, MIB, 16 * KIB, 48, "keep-last", True, 48, 8),
    **{
        f"cpython-3.{minor}": (16, MIB, 16 * KIB, 48, "keep-last", True, 64, 8) for minor in (11, 12, 13, 14, 15)
    },
    "cpython-3.11-32bit": (8, 256 * KIB, 4 * KIB, 32, "keep-last", True, 64, 4),
    "cpython-3.15-hugepages": (16, 2 * MIB, 16 * KIB, 48, "keep-last", True, 64, 8),
    "cpython-3.12-musl": (16, MIB, 16 * KIB, 48, "keep-last", True, 64, 8),
}  # fmt: skip
WITHOUT_PYMALLOC = {
    *(f"cpython-3.{minor}-malloc" for minor in range(6, 16)),
    "ideal",
    "bump",
    "cpython-3.12-musl-malloc",
}


def test_every_preset_is_accounted_for_here():
    assert set(config_names()) == {*GEOMETRY, *WITHOUT_PYMALLOC}


@pytest.mark.parametrize("name", GEOMETRY)
def test_a_preset_is_the_release_that_it_is_named_after(name):
    config = load_config(name)
    pymalloc = config.pymalloc
    assert config.name == name
    assert config.description.startswith("CPython")
    assert (
        pymalloc.alignment, pymalloc.arena_size, pymalloc.pool_size, pymalloc.pool_header, pymalloc.release,
        pymalloc.radix_tree, pymalloc.address_bits, pymalloc.word_size,
    ) == GEOMETRY[name]  # fmt: skip
    libc = "musl" if "musl" in name else "glibc"
    assert (config.models, pymalloc.small_threshold) == ((libc, "pymalloc"), 512)
    assert pymalloc.huge_pages is (name == "cpython-3.15-hugepages")
    assert config.glibc.word_size == pymalloc.word_size
    assert config.domains.by_number() == (libc, libc if name == "cpython-2.7" else "pymalloc", "pymalloc", libc)


@pytest.mark.parametrize("name", sorted(WITHOUT_PYMALLOC))
def test_presets_without_pymalloc_send_everything_to_libc(name):
    config = load_config(name)
    assert config.small_model is None
    assert set(config.domains.by_number()) == {config.libc_model}


@pytest.mark.parametrize(("name", "model"), [("ideal", "ideal"), ("bump", "bump")])
def test_floor_and_ceiling_are_models_of_the_same_name(name, model):
    assert load_config(name).models == (model,)


def test_the_32_bit_preset_lives_in_4_gib_and_aligns_nothing_to_huge_pages():
    linux = load_config("cpython-3.11-32bit").linux
    assert (linux.mmap_base, linux.brk_base, linux.huge_page_size) == (0xF7FF1000, 0x56560000, 0)


def test_without_a_name_it_is_the_python_that_runs():
    own = f"cpython-3.{sys.version_info.minor}"
    assert default_preset() == (own if own in config_names() else "cpython-3.15")


# Overrides


def test_an_override_changes_its_key_and_nothing_else():
    plain, changed = load_config("cpython-3.12"), load_config("cpython-3.12", ["pymalloc.alignment=8"])
    assert changed.pymalloc.alignment == 8
    assert changed.model_dump(exclude={"pymalloc"}) == plain.model_dump(exclude={"pymalloc"})
    assert changed.pymalloc.model_dump(exclude={"alignment"}) == plain.pymalloc.model_dump(exclude={"alignment"})


def test_overrides_take_units_hexadecimals_and_spaces_and_the_last_one_wins():
    config = load_config(
        "cpython-3.12",
        [
            "pymalloc.arena_size=512 KiB",
            "linux.mmap_base=0x7f0000000000",
            " glibc.top_pad = 1 MiB",
            "glibc.top_pad=64 KiB",
        ],
    )
    assert config.pymalloc.arena_size == 512 * KIB
    assert config.linux.mmap_base == 0x7F0000000000
    assert config.libc.top_pad == 64 * KIB


def test_another_c_library_answers_the_raw_domain_too():
    config = load_config("cpython-3.12", ["domains.libc=bump", "bump.top_pad=4 KiB"])
    assert config.domains.by_number() == ("bump", "pymalloc", "pymalloc", "bump")
    assert config.libc.model_dump() == {"top_pad": 4 * KIB}


def test_pymalloc_can_be_removed_from_a_stack():
    config = load_config("cpython-3.12", ["domains.mem=null", "domains.obj=glibc"])
    assert config.models == ("glibc",)
    assert config.effective_settings() == load_config("cpython-3.12-malloc").effective_settings()


def test_an_override_of_a_model_that_is_not_in_use_is_refused():
    with pytest.raises(ConfigError) as refusal:
        load_config("cpython-3.12-malloc", ["pymalloc.alignment=8"])
    assert str(refusal.value) == "--set pymalloc.alignment=8: no domain of cpython-3.12-malloc uses pymalloc"


def test_a_configuration_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        load_config("cpython-3.12").pymalloc.alignment = 8


REFUSED = {
    "pymalloc.alignmet=8": "--set pymalloc.alignmet=8: unknown key; did you mean 'alignment'?",
    "pymaloc.alignment=8": "unknown key; did you mean 'pymalloc'?",
    "domains.obj=glib": "--set domains.obj=glib: unknown allocator model 'glib'; did you mean 'glibc'?",
    "domains.obj=bump": "domains: pymalloc and bump cannot both be on top of glibc; name one of them",
    "costs.call=-1": "--set costs.call=-1: -1 should be greater than or equal to 0",
    "pymalloc.alignment": "--set pymalloc.alignment: write it like pymalloc.alignment=8",
    "a.b.c=1": "--set a.b.c=1: write it like pymalloc.alignment=8",
    "=8": "--set =8: write it like pymalloc.alignment=8",
    "pymalloc.alignment=[": "--set pymalloc.alignment=[: is not valid YAML: expected",
    "pymalloc.alignment=lots": "--set pymalloc.alignment=lots: 'lots' is not a size; write it like 256 KiB",
    "pymalloc.alignment=1.5": "is not a whole number of bytes",
    "pymalloc.alignment=12": "alignment: 12 is not a power of two of at least 8",
    "pymalloc.alignment=4": "alignment: 4 is not a power of two of at least 8",
    "pymalloc.pool_size=5000": "pool_size: 5000 is not a power of two",
    "pymalloc.arena_size=1000000": "arena_size: 1000000 is not a multiple of pool_size, 16384",
    "pymalloc.arena_size=48 KiB": "arena_size: 49152 is less than four pools of 16384",
    "pymalloc.arena_size=96 KiB": "arena_size: 98304 is not a power of two; a radix tree requires one",
    "pymalloc.small_threshold=500": "small_threshold: 500 is not a multiple of alignment, 16",
    "pymalloc.small_threshold=0": "small_threshold: 0 is not a multiple of alignment, 16",
    "pymalloc.small_threshold=8192": "small_threshold: a pool of 16384 bytes holds fewer than two blocks of 8192",
    "pymalloc.pool_size=1 KiB": "small_threshold: a pool of 1024 bytes holds fewer than two blocks of 512",
    "pymalloc.pool_header=40": "pool_header: 40 is less than the size of struct pool_header, 48",
    "pymalloc.pool_size=0": "pool_size: 0 is not a power of two of at least 256",
    "pymalloc.arena_size=2 GiB": "arena_size: 2147483648 exceeds 67108864, the largest supported size",
    "pymalloc.arena_size=1e400": "'1e400' exceeds 63 bits",
    "glibc.top_pad=1 GiB": "should be less than or equal to 67108864",
    "extends=cpython-3.8": "`extends` can only be set in a file; choose another preset with -a",
    "domains.libc=3": "--set domains.libc=3: 3 should be a text",
    "domains.libc=[1]": "--set domains.libc=[1]: [1] should be a text",
    "pymalloc.pool_size=1 MiB": "arena_size: 1048576 is less than four pools of 1048576",
    "pymalloc.address_bits=32": "address_bits: 32 is neither 48 nor 64",
    "pymalloc.release=never": "'never' should be 'immediate' or 'keep-last'",
    "linux.page_size=3000": "page_size: 3000 is not a power of two from 256 bytes to 2 MiB",
    "linux.page_size=128": "page_size: 128 is not a power of two from 256 bytes to 2 MiB",
    "linux.huge_page_size=3 MiB": "huge_page_size: 3145728 is not a power of two from page_size to 32 MiB",
    "linux.transparent_huge_pages=sometimes": "'sometimes' should be 'never', 'madvise' or 'always'",
    "glibc.hugetlb=-1": "--set glibc.hugetlb=-1: -1 is not a size; write it like 256 KiB",
    "glibc.mxfast=161": "mxfast: 161 exceeds 160; glibc 2.36 ignores it",
    "linux.reserved_huge_pages=-1": "should be greater than or equal to 0",
    "linux.mmap_base=0x7ffff7ff1001": "mmap_base: 0x7ffff7ff1001 is not a multiple of the page size",
    "linux.mmap_base=0x555555561000": "mmap_base: 0x555555561000 must be well above brk_base 0x555555560000",
    "linux.mmap_base=0x800000000000": "must be well above brk_base 0x555555560000 and below 2^47",
    "domains.libc=glibbc": "--set domains.libc=glibbc: unknown allocator model 'glibbc'; did you mean 'glibc'?",
    "domains.libc=pymalloc": "domains: pymalloc has the role small only, not libc",
    "pymalloc=null": "--set pymalloc=null: None must be a mapping of keys to values",
    "glibc=7": "--set glibc=7: 7 must be a mapping of keys to values",
    "glibc.mmap_threshold=soon": "--set glibc.mmap_threshold=soon: ",
    "glibc.word_size=5": "--set glibc.word_size=5: 5 should be 4 or 8",
}  # fmt: skip


@pytest.mark.parametrize("override", REFUSED)
def test_an_impossible_override_is_refused_with_the_reason(override):
    with pytest.raises(ConfigError) as refusal:
        load_config("cpython-3.12", [override])
    assert REFUSED[override] in str(refusal.value)
    assert "validation error" not in str(refusal.value)


def test_malloc_uses_reserved_huge_pages_only_in_64_bit():
    with pytest.raises(ConfigError, match=r"hugetlb: 2 \(MAP_HUGETLB\) is not supported for 32-bit; use 0 or 1"):
        load_config("cpython-3.11-32bit", ["glibc.hugetlb=2"])


def test_huge_pages_need_their_size():
    with pytest.raises(ConfigError, match="reserved_huge_pages: 2 need a huge_page_size above page_size"):
        load_config("cpython-3.12", ["linux.reserved_huge_pages=2", "linux.huge_page_size=0"])
    with pytest.raises(ConfigError, match="transparent_huge_pages: always needs a huge_page_size above page_size"):
        load_config("cpython-3.12", ["linux.transparent_huge_pages=always", "linux.huge_page_size=0"])


def test_a_glibc_without_the_tunable_refuses_it():
    with pytest.raises(ConfigError, match=r"hugetlb: not supported by glibc 2\.31, only from 2\.35 on"):
        load_config("cpython-3.12", ["glibc.version=2.31", "glibc.hugetlb=1"])


def test_a_pool_with_more_blocks_than_its_list_can_number_is_refused():
    overrides = ["pymalloc.pool_size=1 MiB", "pymalloc.arena_size=4 MiB", "pymalloc.alignment=8"]
    with pytest.raises(ConfigError, match="pool_size: a pool of 1048576 bytes holds more than 65534 blocks"):
        load_config("cpython-3.12", overrides)


def test_several_mistakes_are_all_reported():
    with pytest.raises(ConfigError) as refusal:
        load_config("cpython-3.12", ["pymalloc.alignmet=8", "linux.pages=3"])
    assert len(str(refusal.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cpython-3.21", "did you mean 'cpython-3.1"), ("ruby", "known here: bump, cpython-2.7, ")],
)
def test_an_unknown_preset_is_refused_with_a_hint(name, hint):
    with pytest.raises(ConfigError) as refusal:
        load_config(name)
    assert str(refusal.value).startswith(f"{name}: no bundled config has this name; {hint}")


# Files


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_is_read_with_what_it_extends(tmp_path):
    path = written(
        tmp_path / "ours.yaml",
        "extends: cpython-3.9\ndescription: Ours.\nlinux: {page_size: 16 KiB, mmap_base: 0x7f0000000000}\n"
        "pymalloc: {alignment: 32}\n",
    )  # fmt: skip
    config = load_config(str(path), ["linux.brk_base=0x555555560000"])
    assert (config.pymalloc.pool_header, config.pymalloc.pool_overhead) == (48, 64)
    assert (config.name, config.description, config.extends) == ("ours", "Ours.", "cpython-3.9")
    assert (config.pymalloc.alignment, config.pymalloc.arena_size, config.linux.page_size) == (
        32,
        256 * KIB,
        16 * KIB,
    )


def test_a_file_may_extend_another_one_beside_it(tmp_path):
    written(tmp_path / "base.yaml", "name: base\npymalloc: {arena_size: 2 MiB}\nglibc: {top_pad: 1 MiB}\n")
    config = load_config(
        written(tmp_path / "over.yaml", "extends: base.yaml\npymalloc: {alignment: 32, pool_header: 64}\n")
    )
    assert (config.name, config.pymalloc.arena_size, config.pymalloc.alignment) == ("over", 2 * MIB, 32)
    assert config.libc.top_pad == MIB


def test_files_that_extend_each_other_are_refused(tmp_path):
    written(tmp_path / "a.yaml", "extends: b.yaml\n")
    with pytest.raises(ConfigError, match=r"b\.yaml: extends itself through a\.yaml"):
        load_config(written(tmp_path / "b.yaml", "extends: a.yaml\n"))


BROKEN = {
    "pymalloc: {alignment: 16\n": r"broken\.yaml:2: is not valid YAML",
    "just words\n": r"broken\.yaml:1: must be a mapping of keys to values",
    "": r"broken\.yaml:1: must be a mapping of keys to values",
    "name: x\n\nlinxu: {}\n": r"broken\.yaml:3: linxu: unknown key; did you mean 'linux'\?",
    "extends: cpython-3.12\npymalloc:\n  pool_sise: 4 KiB\n": (
        r"broken\.yaml:3: pymalloc\.(pymalloc\.)?pool_sise: unknown key; did you mean 'pool_size'\?"
    ),
    "extends: cpython-3.12\npymalloc: {pool_size: 4 KiB, arena_size: 5000}\n": (
        r"broken\.yaml:2: pymalloc: arena_size: 5000 is not a multiple of pool_size, 4096"
    ),
    "extends: [1]\n": r"broken\.yaml: extends: \[1\] is not the name of a preset or file",
    "extends: nothing.yaml\n": r"nothing\.yaml: cannot be read: No such file",
    "domains: {libc: hoard}\n": (
        r"broken\.yaml:1: domains\.libc: unknown allocator model 'hoard'; known here: bump, .*glibc, .*pymalloc"
    ),
    "name: a\nname: b\n": r"broken\.yaml:2: duplicate key 'name', first on line 1",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_refused_with_its_line(tmp_path, text):
    with pytest.raises(ConfigError, match=BROKEN[text]):
        load_config(written(tmp_path / "broken.yaml", text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")


def test_a_setting_of_the_environment_is_blamed_as_such_and_once():
    with pytest.raises(ConfigError) as caught:
        load_config("cpython-3.12", (), ["MALLOC_TOP_PAD_=1000000000"])
    assert str(caught.value) == (
        "--env, as glibc.top_pad=1000000000: 1000000000 should be less than or equal to 67108864"
    )
    with pytest.raises(ConfigError, match=r"^cpython-3.12-glibc-2.99, as glibc.version=2.99: '2.99' should be '2.31'"):
        load_config("cpython-3.12-glibc-2.99")


def test_each_wrong_override_is_reported_with_its_own_mistake():
    with pytest.raises(ConfigError) as caught:
        load_config("cpython-3.12", ["linux.reserved_huge_pages=-1", "linux.transparent_huge_pages=maybe"])
    assert sorted(str(caught.value).splitlines()) == [
        "--set linux.reserved_huge_pages=-1: -1 should be greater than or equal to 0",
        "--set linux.transparent_huge_pages=maybe: 'maybe' should be 'never', 'madvise' or 'always'",
    ]


def test_of_several_overrides_the_one_with_the_wrong_key_is_blamed():
    with pytest.raises(ConfigError, match=r"^--set pymalloc\.arena_size=1GiB: arena_size: 1073741824 exceeds"):
        load_config("cpython-3.12", ["pymalloc.arena_size=1GiB", "pymalloc.pool_size=32 KiB"])


def test_huge_page_arenas_are_multiples_of_huge_pages():
    with pytest.raises(ConfigError, match="arena_size: 1048576 is not a multiple of the huge page size, 2097152"):
        load_config("cpython-3.15-hugepages", ["pymalloc.arena_size=1 MiB"])
