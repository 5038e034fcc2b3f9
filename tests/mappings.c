/* Does to its own address space what it is told, and tells what Linux made of it.
 *
 *   mappings PLACE PAGES
 *
 * Reads `Order`s from standard input until it ends, and answers each on standard output with one int64:
 *
 *   MAP     0  length      the address of a new anonymous mapping
 *   UNMAP   address length    0
 *   TOUCH   address length    0; every page of it has been written to
 *   BREAK   address 0         the program break, moved to address
 *   SURVEY  address length    0, and then a byte a page: 0 not mapped, 1 mapped, 2 resident, and
 *                             4 more if it may not be touched
 *   MAP_HUGETLB 0 length      as MAP, of the kernel's reserved huge pages; none need be there, nor can be touched
 *   ADVISE  address length    0; huge pages may be there from now on (MADV_HUGEPAGE)
 *   GIVE    address length    0; its pages go (MADV_DONTNEED)
 *   RESIZE  address length    of the mapping there, which is followed by its new length: its new address
 *   RESERVE 0 length          as MAP, of addresses that may not be touched
 *   PROTECT address length    0; they may be touched from now on
 *   MAP_RESERVED 0 length     as MAP_HUGETLB, of pages that are there for it
 *   MAP_AT  address length    of a mapping for which the address is a hint; its flags follow (`enum flags`): its address
 *   UNPROTECT address length  0; they may not be touched from now on
 *   FREE    address length    0; Linux may take its pages when memory runs short (MADV_FREE)
 *   ADVISE_SMALL address length  0; no huge pages may be there from now on (MADV_NOHUGEPAGE)
 *   LAZY    address length    bytes of pages there that Linux may take since FREE
 *
 * A refusal by the kernel is answered with -errno. The first two int64, before any order, are the address right below
 * which the first mapping goes, and the program break. The former is PLACE modulo 2 MiB; every hole above is filled.
 *
 * All memory of its own is static: a malloc would move the break or make mappings. PAGES is `single`, or
 * `huge`: then transparent huge pages are on during each TOUCH, and off otherwise, so that none are collapsed in the
 * background. Exit status 2 says that this Linux does not hand out mappings top-down. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAP, UNMAP, TOUCH, BREAK, SURVEY, MAP_OF_HUGETLB, ADVISE, GIVE, RESIZE, RESERVE, PROTECT, MAP_RESERVED,
       MAP_AT, UNPROTECT, FREE, ADVISE_SMALL, LAZY };
enum flags { NO_ACCESS = 1, NO_RESERVE = 2, FIXED = 4, NO_REPLACE = 8 };
enum { NOT_MAPPED, MAPPED, RESIDENT, CLOSED = 4 };
typedef struct { int64_t operation, address, length; } Order;
typedef struct { uintptr_t start, end; unsigned char access; } Range;

#define PAGE ((uintptr_t)4096)
#define HUGE_PAGE ((uintptr_t)2 << 20)
#define SURVEY_PAGES 4096 /* told at once */

static void die(const char *what, int status) {
    (void)!write(STDERR_FILENO, what, strlen(what));
    _exit(status);
}

static void tell(const void *what, size_t bytes) {
    for (const char *rest = what; bytes;) {
        ssize_t written = write(STDOUT_FILENO, rest, bytes);
        if (written <= 0)
            die("nobody listens", 3);
        rest += written, bytes -= (size_t)written;
    }
}

static int hear(void *what, size_t bytes) {
    for (char *rest = what; bytes;) {
        ssize_t got = read(STDIN_FILENO, rest, bytes);
        if (got <= 0)
            return 0;
        rest += got, bytes -= (size_t)got;
    }
    return 1;
}

static int64_t map_pages(uintptr_t length, int flags) {
    void *start = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return start == MAP_FAILED ? -errno : (int64_t)(uintptr_t)start;
}

static void *reserve(uintptr_t address, size_t length) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (address ? MAP_FIXED_NOREPLACE : 0);
    return mmap((void *)address, length, PROT_NONE, flags, -1, 0);
}

/* The start and end of every mapping, from the lowest, by /proc/self/maps; ends with a range of zeros. */
static const Range *read_mappings(void) {
    static char text[1 << 20];
    static Range ranges[1 << 14];
    size_t length = 0, count = 0;
    ssize_t got;
    int file = open("/proc/self/maps", O_RDONLY);
    while (file >= 0 && (got = read(file, text + length, sizeof text - length)) > 0)
        length += (size_t)got;
    close(file);
    for (char *line = text; line < text + length; line = strchr(line, '\n') + 1) {
        char *dash;
        if (length == sizeof text || count == sizeof ranges / sizeof *ranges - 1)
            die("/proc/self/maps is too long", 3);
        ranges[count].start = (uintptr_t)strtoull(line, &dash, 16);
        ranges[count].end = (uintptr_t)strtoull(dash + 1, &dash, 16);
        ranges[count++].access = dash[1] == '-' ? CLOSED : 0;
    }
    ranges[count].start = ranges[count].end = 0;
    return ranges;
}

/* Start of the lowest mapping above the heap. */
static uintptr_t find_floor(uintptr_t heap_end) {
    for (const Range *range = read_mappings(); range->end; range++)
        if (range->start >= heap_end)
            return range->start;
    die("/proc/self/maps does not show where mappings start", 3);
    return 0;
}

/* Fills every hole above the lowest mapping, and what lies between that and PLACE modulo 2 MiB; returns where it ends. */
static uintptr_t fill_holes(uintptr_t heap_end, uintptr_t place) {
    uintptr_t floor = find_floor(heap_end);
    for (size_t length = (size_t)1 << 30; length >= PAGE; length >>= 1)
        for (;;) {
            void *filler = reserve(0, length);
            if (filler == MAP_FAILED)
                break;
            if ((uintptr_t)filler < floor) {
                munmap(filler, length);
                break;
            }
        }
    uintptr_t gap = (floor - place) % HUGE_PAGE, base = floor - gap;
    if (gap && reserve(base, gap) != (void *)base)
        die("the address space beneath the lowest mapping is taken", 3);
    void *trial = reserve(0, PAGE);
    munmap(trial, PAGE);
    if ((uintptr_t)trial + PAGE != base)
        die("this Linux does not hand out mappings from the top downwards", 2);
    return base;
}

static void disable_huge_pages(long are_disabled) {
    if (prctl(PR_SET_THP_DISABLE, are_disabled, 0, 0, 0))
        die("transparent huge pages cannot be turned on and off", 3);
}

static int huge_pages;

static size_t count_resident(uintptr_t start, uintptr_t end) {
    static unsigned char found[HUGE_PAGE / PAGE];
    size_t count = 0;
    if (!mincore((void *)start, end - start, found))
        for (size_t page = 0; page < (end - start) / PAGE; page++)
            count += found[page] & 1;
    return count;
}

static void write_pages(uintptr_t start, uintptr_t end) {
    for (uintptr_t at = start; at < end; at = (at & -PAGE) + PAGE)
        *(volatile char *)at = 1;
}

/* Where huge pages may come, all of one that came is written to: Linux takes pages of zeros away when it splits one. */
static void touch(uintptr_t start, uintptr_t end) {
    if (!huge_pages) {
        write_pages(start, end);
        return;
    }
    disable_huge_pages(0);
    for (uintptr_t at = start, stop; at < end; at = stop) {
        uintptr_t range = at & -HUGE_PAGE, range_end = range + HUGE_PAGE;
        stop = range_end < end ? range_end : end;
        size_t before = count_resident(range, range_end);
        write_pages(at, stop);
        if (!before && count_resident(range, range_end) == HUGE_PAGE / PAGE)
            write_pages(range, range_end);
    }
    disable_huge_pages(1);
}

/* Writes the states of these pages, of which no range before `range` has any; returns where the next pages may begin. */
static const Range *look_at(uintptr_t start, uintptr_t end, const Range *range, unsigned char *states) {
    memset(states, NOT_MAPPED, (end - start) / PAGE);
    while (range->end && range->end <= start)
        range++;
    for (const Range *each = range; each->end && each->start < end; each++) {
        uintptr_t from = each->start > start ? each->start : start, to = each->end < end ? each->end : end;
        unsigned char *found = states + (from - start) / PAGE;
        if (mincore((void *)from, to - from, found))
            die("mincore fails", 3);
        for (size_t page = 0; page < (to - from) / PAGE; page++)
            found[page] = (found[page] & 1 ? RESIDENT : MAPPED) | each->access;
    }
    return range;
}

static void survey(uintptr_t start, uintptr_t length) {
    static unsigned char states[SURVEY_PAGES];
    const Range *range = read_mappings();
    for (size_t pages = length / PAGE, part; pages; pages -= part, start += part * PAGE) {
        part = pages < SURVEY_PAGES ? pages : SURVEY_PAGES;
        range = look_at(start, start + part * PAGE, range, states);
        tell(states, part);
    }
}

static int64_t resize(uintptr_t address, uintptr_t length) {
    int64_t new_length;
    if (!hear(&new_length, sizeof new_length))
        die("a new length is missing", 3);
    void *start = mremap((void *)address, length, (size_t)new_length, MREMAP_MAYMOVE);
    return start == MAP_FAILED ? -errno : (int64_t)(uintptr_t)start;
}

static int64_t map_at(uintptr_t address, uintptr_t length) {
    int64_t wanted;
    if (!hear(&wanted, sizeof wanted))
        die("flags are missing", 3);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (wanted & NO_RESERVE ? MAP_NORESERVE : 0);
    flags |= (wanted & FIXED ? MAP_FIXED : 0) | (wanted & NO_REPLACE ? MAP_FIXED_NOREPLACE : 0);
    void *start = mmap((void *)address, length, wanted & NO_ACCESS ? PROT_NONE : PROT_READ | PROT_WRITE, flags, -1, 0);
    return start == MAP_FAILED ? -errno : (int64_t)(uintptr_t)start;
}

/* Each processor keeps some pages for which FREE is not done yet; this has it done. The process stays on one. */
static void finish_advice(void) {
    static char page[4096] __attribute__((aligned(4096)));
    page[0] = 1;
    if (madvise(page, sizeof page, MADV_FREE) || mlock(page, sizeof page) || munlock(page, sizeof page))
        die("pages cannot be locked", 3);
}

/* What /proc/self/smaps calls LazyFree, of the mappings that begin in [start, end). */
static int64_t count_lazy(uintptr_t start, uintptr_t end) {
    static char text[1 << 22];
    size_t length = 0;
    int64_t bytes = 0;
    ssize_t got;
    finish_advice();
    int file = open("/proc/self/smaps", O_RDONLY), is_inside = 0;
    while (file >= 0 && (got = read(file, text + length, sizeof text - 1 - length)) > 0)
        length += (size_t)got;
    close(file);
    if (length == sizeof text - 1)
        die("/proc/self/smaps is too long", 3);
    text[length] = 0;
    for (char *line = text; line < text + length; line = strchr(line, '\n') + 1) {
        char *dash;
        uintptr_t from = (uintptr_t)strtoull(line, &dash, 16);
        if (*dash == '-')
            is_inside = from >= start && from < end;
        else if (is_inside && !strncmp(line, "LazyFree:", 9))
            bytes += strtoll(line + 9, NULL, 10) << 10;
    }
    return bytes;
}

/* Has only one processor run the process. */
static void stay_here(void) {
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    if (sched_setaffinity(0, sizeof here, &here))
        die("the process cannot stay on one processor", 3);
}

static int64_t obey(const Order *order) {
    uintptr_t address = (uintptr_t)order->address, length = (uintptr_t)order->length;
    switch (order->operation) {
    case MAP: return map_pages(length, 0);
    case MAP_OF_HUGETLB: return map_pages(length, MAP_HUGETLB | MAP_NORESERVE);
    case MAP_RESERVED: return map_pages(length, MAP_HUGETLB);
    case UNMAP: return munmap((void *)address, length) ? -errno : 0;
    case TOUCH: touch(address, address + length); return 0;
    case BREAK: return (int64_t)syscall(SYS_brk, address);
    case ADVISE: return madvise((void *)address, length, MADV_HUGEPAGE) ? -errno : 0;
    case GIVE: return madvise((void *)address, length, MADV_DONTNEED) ? -errno : 0;
    case RESIZE: return resize(address, length);
    case RESERVE: return (int64_t)(uintptr_t)reserve(0, length);
    case PROTECT: return mprotect((void *)address, length, PROT_READ | PROT_WRITE) ? -errno : 0;
    case MAP_AT: return map_at(address, length);
    case UNPROTECT: return mprotect((void *)address, length, PROT_NONE) ? -errno : 0;
    case FREE: return madvise((void *)address, length, MADV_FREE) ? -errno : 0;
    case ADVISE_SMALL: return madvise((void *)address, length, MADV_NOHUGEPAGE) ? -errno : 0;
    case LAZY: return count_lazy(address, address + length);
    default: return 0;
    }
}

int main(int count, char **arguments) {
    if (count != 3)
        die("usage: mappings PLACE PAGES", 3);
    huge_pages = !strcmp(arguments[2], "huge");
    disable_huge_pages(1);
    stay_here();
    uintptr_t heap = ((uintptr_t)syscall(SYS_brk, 0) + PAGE - 1) & -PAGE;
    syscall(SYS_brk, heap);
    int64_t start[] = {(int64_t)fill_holes(heap, (uintptr_t)strtoull(arguments[1], NULL, 10)), (int64_t)heap};
    tell(start, sizeof start);
    for (Order order; hear(&order, sizeof order);) {
        int64_t answer = obey(&order);
        tell(&answer, sizeof answer);
        if (order.operation == SURVEY)
            survey((uintptr_t)order.address, (uintptr_t)order.length);
    }
    return 0;
}
