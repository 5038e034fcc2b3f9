/* Runs a Python script with a real libpython and writes its calls of Python's allocators in chosen regions.
 *
 *   object_harness LIBPYTHON RELEASE SCRIPT RESULT        RELEASE: 3.11 is 11
 *
 * The script imports functions from the module `allocation_log`. Calls of them allocate nothing:
 *
 *   start()         starts a region
 *   mark(number)    adds a mark to the region
 *   join()          waits until all other threads have ended
 *   stop()          ends the region
 *
 * RESULT gets a `Header`, MAX_REGIONS `Region`s, and the `Event`s of all regions, one region after the other.
 * Python runs with -S and the environment of the harness. The real allocators make all allocations; the harness's own
 * memory is mapped before. Only the outermost call is recorded: pymalloc passes large requests on to the raw domain.
 *
 * Collections are recorded too. There is no interface for this without allocations: the functions of `gc` return new
 * objects, and callbacks get a new dict. So the harness reads the collector's state, which has few layouts, at
 * each event. The start of a collection is recorded at its first event, its end at the first event after it. */
#define _GNU_SOURCE
#include "address_space.h"

#include <dlfcn.h>
#include <stdio.h>
#include <sys/personality.h>

enum { OP_MALLOC, OP_CALLOC, OP_REALLOC, OP_FREE, OP_GC_START = 16, OP_GC_END = 17, OP_MARK = 32 };
enum { DOMAINS = 3, GENERATIONS = 3 };

#define MAX_EVENTS ((size_t)1 << 26)
#define MAX_REGIONS 1024
#define SLOT_BITS 21
#define SLOTS ((size_t)1 << SLOT_BITS) /* of the table of live blocks */
#define UNKNOWN 255             /* generation of a collection that has not ended */
#define NOT_RECORDED SIZE_MAX

/* size: of a free, of the freed block; of a mark, its number; of a collection, its generation.
 * block: numbered from 1 in each region; 0 if it was allocated outside the region.
 * thread: numbered from 0 in order of their first events in the process. */
typedef struct { uint8_t op, domain; uint16_t thread; uint32_t block; uint64_t size; } Event;
typedef struct { int64_t counts[GENERATIONS], collections[GENERATIONS], collected[GENERATIONS], uncollectable[GENERATIONS]; } Collector;
typedef struct { uint64_t first, end; Collector before, after; } Region;
typedef struct { uint64_t events, regions, ended; } Header;
typedef struct { uintptr_t address; uint64_t size; uint32_t block, region; } Live;
typedef struct {
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
} Allocator; /* PyMemAllocatorEx */

static Allocator real[DOMAINS];
static Header *header;
static Region *regions;
static Event *events;
static Live *live; /* open addressing, linear probing */
static size_t live_blocks;
static uint32_t region, blocks; /* number of the open region, 0 if none; its blocks so far */
static char lock;               /* the raw domain is called without the GIL */
static uint16_t threads;        /* so far */
static __thread int depth;
static __thread uint16_t thread; /* number of this thread, from 1; 0 before its first event */

static void acquire(void) {
    while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE))
        ;
}

static void release(void) {
    __atomic_clear(&lock, __ATOMIC_RELEASE);
}

static void append(int op, int domain, uint32_t block, uint64_t size) {
    if (!region)
        return;
    if (header->events == MAX_EVENTS)
        die("the log of events is full");
    if (!thread)
        thread = ++threads;
    events[header->events++] = (Event){(uint8_t)op, (uint8_t)domain, (uint16_t)(thread - 1), block, size};
}

/* Live blocks */

static size_t home_of(uintptr_t address) {
    return (size_t)((address >> 3) * 0x9E3779B97F4A7C15u >> (64 - SLOT_BITS));
}

static size_t slot_of(uintptr_t address) {
    size_t slot = home_of(address);
    while (live[slot].address && live[slot].address != address)
        slot = (slot + 1) & (SLOTS - 1);
    return slot;
}

static void insert(void *address, Live block) {
    block.address = (uintptr_t)address;
    live_blocks += !live[slot_of(block.address)].address;
    if (live_blocks > SLOTS / 2)
        die("the table of live blocks is full");
    live[slot_of(block.address)] = block;
}

/* Removes a block and returns its description; zeros if it is not known. */
static Live take(void *address) {
    size_t hole = slot_of((uintptr_t)address);
    Live taken = live[hole];
    if (!taken.address)
        return taken;
    live_blocks--;
    for (size_t slot = hole;;) {
        slot = (slot + 1) & (SLOTS - 1);
        if (!live[slot].address)
            break;
        if (((slot - home_of(live[slot].address)) & (SLOTS - 1)) >= ((slot - hole) & (SLOTS - 1))) {
            live[hole] = live[slot];
            hole = slot;
        }
    }
    live[hole].address = 0;
    return taken;
}

static uint32_t number_of(Live block) {
    return block.region == region ? block.block : 0;
}

/* The cyclic garbage collector */

/* Layouts of the collector's state, `struct _gc_runtime_state`, in 64-bit builds. The list of young objects ends at the
 * first generation. A generation has the alignment of an int in 3.13.18, otherwise that of a pointer. */
typedef struct __attribute__((packed, aligned(4))) { void *next, *previous; int threshold, count; } Generation;
typedef struct { int64_t collections, collected, uncollectable; } Totals;
typedef struct { int64_t started, stopped; Totals totals; int64_t unused[3]; } Sample; /* from 3.15 on */
typedef struct {
    struct { Sample samples[11]; int8_t last; } young;
    struct { Sample samples[3]; int8_t last; } old[2];
} Samples;

static Generation *generations;
static int *collecting;
static Totals *totals;    /* of each generation; before 3.15 */
static Samples **samples; /* from 3.15 on */
static enum { IDLE, RUNNING, ENDING } phase;
static int64_t seen[GENERATIONS]; /* ended collections */
static size_t started;            /* event at which the running collection started */
static int running;               /* generation of this collection, or UNKNOWN */
static int events_left;           /* until its end */
static int (*is_initialized)(void);
static int release_number;

static void find_collector(void *list) {
    generations = (Generation *)(((uintptr_t *)list)[-2] & ~(uintptr_t)3); /* the list is the newest object */
    uintptr_t after = (uintptr_t)(generations + GENERATIONS + 1); /* the permanent generation follows */
    after += release_number < 14 ? sizeof(void *) : 0;                   /* before it, a pointer to the first one */
    after = (after + sizeof(void *) - 1) & -sizeof(void *);
    if (release_number < 15)
        totals = (Totals *)after, collecting = (int *)(totals + GENERATIONS);
    else
        samples = (Samples **)after, collecting = (int *)(samples + 1);
}

static Totals totals_of(int generation) {
    if (totals)
        return totals[generation];
    Samples *all = *samples;
    return generation ? all->old[generation - 1].samples[all->old[generation - 1].last].totals
                      : all->young.samples[all->young.last].totals;
}

static Collector read_collector(void) {
    Collector state;
    for (int i = 0; i < GENERATIONS; i++) {
        Totals now = totals_of(i);
        state.counts[i] = generations[i].count, state.collections[i] = now.collections;
        state.collected[i] = now.collected, state.uncollectable[i] = now.uncollectable;
    }
    return state;
}

static void start_collection(int generation) {
    started = header->events, running = generation, phase = RUNNING;
    append(OP_GC_START, 0, 0, (uint64_t)generation);
}

static void end_collection(void) {
    append(OP_GC_END, 0, 0, (uint64_t)running);
    phase = IDLE;
}

/* From 3.12 on, a collection begins with the allocation and free of the string "start". After it has added itself to the
 * totals, it ends with those of "stop". */
static void add_to_totals(int generation) {
    seen[generation]++;
    if (phase == ENDING)
        end_collection();
    if (phase == IDLE)
        start_collection(generation);
    else if (started != NOT_RECORDED)
        events[started].size = (uint64_t)generation;
    running = generation, phase = ENDING, events_left = release_number < 12 ? 0 : 2;
}

/* Returns the generation of a collection at its first event. Before, it sets its own and the younger counts to 0, and
 * adds 1 to the next one; from 3.12 on, afterwards. */
static int running_generation(void) {
    if (release_number >= 12)
        return UNKNOWN;
    return generations[1].count ? 0 : generations[2].count ? 1 : 2;
}

/* Records collections that started or ended since the last event. Before 3.12, collections can have no events; several
 * between two events are recorded in order of generation. */
static void watch_collector(void) {
    if (!region || !is_initialized()) /* finalization frees the totals */
        return;
    if (phase == RUNNING && running != UNKNOWN && seen[running] < totals_of(running).collections)
        add_to_totals(running);
    for (int i = 0; i < GENERATIONS; i++)
        while (seen[i] < totals_of(i).collections)
            add_to_totals(i);
    if (phase == ENDING && (!events_left-- || !*collecting))
        end_collection();
    if (phase == IDLE && *collecting)
        start_collection(running_generation());
}

/* Hooks. A block leaves the table before it is freed: afterwards, another thread may get its address. */

static void record_new(int op, int domain, void *address, uint64_t size) {
    if (depth || !address)
        return;
    acquire();
    watch_collector();
    uint32_t number = region ? ++blocks : 0;
    append(op, domain, number, size);
    insert(address, (Live){0, size, number, region});
    release();
}

static void *hook_malloc(void *context, size_t size) {
    Allocator *allocator = context;
    depth++;
    void *address = allocator->malloc(allocator->context, size);
    depth--;
    record_new(OP_MALLOC, (int)(allocator - real), address, size);
    return address;
}

static void *hook_calloc(void *context, size_t count, size_t bytes) {
    Allocator *allocator = context;
    depth++;
    void *address = allocator->calloc(allocator->context, count, bytes);
    depth--;
    record_new(OP_CALLOC, (int)(allocator - real), address, count * bytes);
    return address;
}

static void *hook_realloc(void *context, void *old, size_t size) {
    if (!old)
        return hook_malloc(context, size);
    Allocator *allocator = context;
    Live block = {0};
    if (!depth) {
        acquire();
        watch_collector();
        block = take(old);
        release();
    }
    depth++;
    void *address = allocator->realloc(allocator->context, old, size);
    depth--;
    if (!depth) {
        acquire();
        if (address) {
            append(OP_REALLOC, (int)(allocator - real), number_of(block), size);
            block.size = size;
        }
        insert(address ? address : old, block);
        release();
    }
    return address;
}

static void hook_free(void *context, void *address) {
    Allocator *allocator = context;
    if (address && !depth) {
        acquire();
        watch_collector();
        Live block = take(address);
        append(OP_FREE, (int)(allocator - real), number_of(block), block.size);
        release();
    }
    depth++;
    allocator->free(allocator->context, address);
    depth--;
}

/* The module */

typedef struct { const char *name; void *(*function)(void *, void *); int flags; const char *doc; } Method;
typedef struct {
    struct { intptr_t references; void *type, *initialise; intptr_t index; void *copy; } base;
    const char *name, *doc;
    intptr_t size;
    Method *methods;
    void *slots, *traverse, *clear, *free;
} Definition; /* PyModuleDef */

static void *library, *none;
static long (*as_long)(void *);
static void (*add_reference)(void *);
static void *(*release_gil)(void);
static void (*take_gil)(void *);

static void *find(const char *name) {
    void *symbol = dlsym(library, name);
    if (!symbol)
        die(dlerror());
    return symbol;
}

static void *return_none(void) {
    add_reference(none);
    return none;
}

static void *start(void *module, void *argument) {
    (void)module, (void)argument;
    if (region)
        die("start() was called in a region");
    if (header->regions == MAX_REGIONS)
        die("the script has too many regions");
    acquire();
    region = (uint32_t)++header->regions, blocks = 0;
    Collector now = read_collector();
    regions[region - 1].first = header->events, regions[region - 1].before = now;
    memcpy(seen, now.collections, sizeof seen);
    phase = *collecting ? RUNNING : IDLE, running = UNKNOWN, started = NOT_RECORDED;
    release();
    return return_none();
}

static void *mark(void *module, void *number) {
    (void)module;
    if (!region)
        die("mark() was called outside a region");
    acquire();
    watch_collector();
    append(OP_MARK, 0, 0, (uint64_t)as_long(number));
    release();
    return return_none();
}

/* Waits without the GIL. A thread frees its last block after it has released the GIL, so Python code cannot wait for it. */
static void *join(void *module, void *argument) {
    (void)module, (void)argument;
    void *state = release_gil();
    for (;;) {
        read_text("/proc/self/status");
        char *line = strstr(text, "\nThreads:");
        if (!line || atoi(line + 9) == 1)
            break;
        usleep(200);
    }
    take_gil(state);
    return return_none();
}

static void *stop(void *module, void *argument) {
    (void)module, (void)argument;
    if (!region)
        die("stop() was called outside a region");
    acquire();
    watch_collector();
    regions[region - 1].end = header->events, regions[region - 1].after = read_collector();
    region = 0;
    release();
    return return_none();
}

static void *create_module(void) {
    enum { METH_NOARGS = 4, METH_O = 8, API_VERSION = 3 };
    static Method methods[] = {{"start", start, METH_NOARGS, 0}, {"mark", mark, METH_O, 0}, {"join", join, METH_NOARGS, 0}, {"stop", stop, METH_NOARGS, 0}, {0}};
    static Definition definition = {.base = {.references = 1}, .name = "allocation_log", .size = -1, .methods = methods};
    void *(*new_list)(intptr_t) = (void *(*)(intptr_t))find("PyList_New");
    void *(*create)(Definition *, int) = (void *(*)(Definition *, int))find("PyModule_Create2");
    none = find("_Py_NoneStruct");
    is_initialized = (int (*)(void))find("Py_IsInitialized");
    as_long = (long (*)(void *))find("PyLong_AsLong");
    add_reference = (void (*)(void *))find("Py_IncRef");
    release_gil = (void *(*)(void))find("PyEval_SaveThread");
    take_gil = (void (*)(void *))find("PyEval_RestoreThread");
    void *module = create(&definition, API_VERSION);
    find_collector(new_list(0));
    return module;
}

/* The run */

static void install_hooks(void) {
    void (*get)(int, Allocator *) = (void (*)(int, Allocator *))find("PyMem_GetAllocator");
    void (*set)(int, Allocator *) = (void (*)(int, Allocator *))find("PyMem_SetAllocator");
    for (int domain = 0; domain < DOMAINS; domain++) {
        Allocator hook = {&real[domain], hook_malloc, hook_calloc, hook_realloc, hook_free};
        get(domain, &real[domain]);
        set(domain, &hook);
    }
}

static void open_result(int file) {
    size_t events_at = sizeof(Header) + MAX_REGIONS * sizeof(Region), bytes = events_at + MAX_EVENTS * sizeof(Event);
    if (file < 0 || ftruncate(file, (off_t)bytes))
        die("the result cannot be written");
    char *result = raw_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    live = raw_mmap(NULL, SLOTS * sizeof(Live), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (result == MAP_FAILED || live == MAP_FAILED)
        die("the result does not fit into the address space");
    header = (Header *)result, regions = (Region *)(header + 1), events = (Event *)(result + events_at);
}

/* Starts the program again without address space randomisation, if the system permits that. Addresses decide about the
 * order of sets of objects, and about entries of the type cache. */
static void fix_addresses(void) {
    enum { MAX_WORDS = 16, QUERY = 0xffffffff };
    char *words[MAX_WORDS + 1] = {0};
    int old = personality(QUERY), count = 0;
    if (old < 0 || old & ADDR_NO_RANDOMIZE || personality((unsigned long)old | ADDR_NO_RANDOMIZE) < 0)
        return;
    size_t length = read_text("/proc/self/cmdline"); /* with the loader and its options */
    for (char *word = text; word < text + length && count < MAX_WORDS; word += strlen(word) + 1)
        words[count++] = word;
    execv(words[0], words);
    die("the harness cannot start itself again");
}

int main(int count, char **arguments) {
    if (count != 5)
        die("usage: object_harness LIBPYTHON RELEASE SCRIPT RESULT");
    fix_addresses();
    library = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
    if (!library)
        die(dlerror());
    release_number = atoi(arguments[2]);
    if (read_text(arguments[3]) == sizeof text - 1)
        die("the script is too long");
    int file = open(arguments[4], O_RDWR | O_CREAT | O_TRUNC, 0600);
    open_result(file);
    int (*add_module)(const char *, void *(*)(void)) = (int (*)(const char *, void *(*)(void)))find("PyImport_AppendInittab");
    int (*run_python)(int, char **) = (int (*)(int, char **))find("Py_BytesMain");
    install_hooks();
    add_module("allocation_log", create_module);
    char *options[] = {"python", "-S", "-c", text, NULL};
    int code = run_python(4, options);
    if (!code && region)
        die("the script ended in a region");
    header->ended = 1;
    if (ftruncate(file, (off_t)((char *)(events + header->events) - (char *)header)))
        die("the result cannot be written");
    return code;
}
