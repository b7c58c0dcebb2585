/* A stand-in for libnvidia-ml.so.1 with one card, scripted through environment variables. Lists are comma-separated,
 * one value a question, and the last one stays.
 *   FAKE_USED     bytes that the card holds
 *   FAKE_PROCESS  bytes of the asking process; 0: NVML does not list it under its own id; NA: listed, bytes not told
 *   FAKE_OTHERS   how many other processes are listed
 *   FAKE_FAIL     FUNCTION=CODE[@N],...: that function answers with an error, from its Nth question on
 *   FAKE_GRAPHICS how many processes draw
 *   FAKE_SPIN_US  CPU time that each question takes, in microseconds
 *   FAKE_MIG      set: the card is cut into instances
 * Compiled with OLD it lacks what drivers before 510 lack.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CARD ((void *)1)
#define INSTANCE ((void *)2)
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory2_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } process_t;

static unsigned long long next(const char *name, int *asked) {
    const char *at = getenv(name);
    for (int i = 0; at && i < *asked && strchr(at, ','); i++) at = strchr(at, ',') + 1;
    ++*asked;
    if (at && !strncmp(at, "NA", 2)) return -1ULL;
    return at && *at ? strtoull(at, NULL, 10) : 0;
}
static int used_asked, process_asked, others_asked, graphics_asked, open_count;
static struct { char name[64]; int asked; } calls[32];

/* The scripted error of a function, or 0. */
static int fails(const char *function) {
    int i = 0;
    while (calls[i].name[0] && strcmp(calls[i].name, function)) i++;
    snprintf(calls[i].name, sizeof calls[i].name, "%s", function);
    int asked = ++calls[i].asked;
    const char *at = getenv("FAKE_FAIL");
    size_t length = strlen(function);
    while (at && *at) {
        if (!strncmp(at, function, length) && at[length] == '=') {
            char *end;
            int code = (int)strtol(at + length + 1, &end, 10);
            int from = *end == '@' ? (int)strtol(end + 1, NULL, 10) : 1;
            if (asked >= from) return code;
        }
        at = strchr(at, ',');
        if (at) at++;
    }
    return 0;
}
static void spin(void) {
    const char *given = getenv("FAKE_SPIN_US");
    struct timespec at;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
    long long end = at.tv_sec * 1000000000LL + at.tv_nsec + (given ? 1000LL * atoi(given) : 0);
    while (given && at.tv_sec * 1000000000LL + at.tv_nsec < end) clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
}
#define MAY_FAIL do { spin(); int code = fails(__func__); if (code) return code; } while (0)

int nvmlInitWithFlags(unsigned int flags) {
    memset(calls, 0, sizeof calls);
    MAY_FAIL;
    used_asked = process_asked = others_asked = graphics_asked = 0;
    open_count++;
    return 0;
}
int nvmlShutdown(void) { open_count--; return 0; }
int fakeOpenCount(void) { return open_count; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **handle) { *handle = CARD; return i ? 2 : 0; }
int nvmlDeviceGetHandleByUUID(const char *id, void **handle) {
    MAY_FAIL;
    *handle = strcmp(id, "MIG-stand-in") ? CARD : INSTANCE;
    return strcmp(id, "GPU-stand-in") && *handle == CARD ? 6 : 0;
}
int nvmlDeviceGetName(void *h, char *out, unsigned int n) { MAY_FAIL; snprintf(out, n, "Stand-in 1000"); return 0; }
int nvmlDeviceGetUUID(void *h, char *out, unsigned int n) { MAY_FAIL; snprintf(out, n, "GPU-stand-in"); return 0; }
int nvmlSystemGetDriverVersion(char *out, unsigned int n) { snprintf(out, n, "1.2.3"); return 0; }
int nvmlDeviceGetClockInfo(void *h, int kind, unsigned int *mhz) { MAY_FAIL; *mhz = 1000 + kind; return 0; }
int nvmlDeviceGetMaxClockInfo(void *h, int kind, unsigned int *mhz) { MAY_FAIL; *mhz = 2000 + kind; return 0; }
int nvmlDeviceGetEccMode(void *h, int *now, int *later) { MAY_FAIL; *now = *later = 1; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned int *mw) { MAY_FAIL; *mw = 250000; return 0; }

static int processes(unsigned int *count, process_t *out) {
    static unsigned long long own, others;
    if (*count == 0) { /* pynvml asks twice: for their number, then with room */
        own = next("FAKE_PROCESS", &process_asked);
        others = next("FAKE_OTHERS", &others_asked);
        *count = others + 1;
        return own || others ? 7 : (*count = 0, 0);
    }
    unsigned int n = 0;
    if (own) out[n++] = (process_t){(unsigned int)getpid(), own, 0, 0};
    for (unsigned int i = 0; i < others; i++) out[n++] = (process_t){70000 + i, 77, 0, 0};
    *count = n;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v2(void *h, unsigned int *count, process_t *out) {
    MAY_FAIL;
    return processes(count, out);
}
int nvmlDeviceGetGraphicsRunningProcesses_v2(void *h, unsigned int *count, process_t *out) {
    MAY_FAIL;
    static unsigned long long drawing;
    if (*count == 0) {
        drawing = next("FAKE_GRAPHICS", &graphics_asked);
        *count = drawing + 1;
        return drawing ? 7 : (*count = 0, 0);
    }
    for (unsigned int i = 0; i < drawing; i++) out[i] = (process_t){80000 + i, 77, 0, 0};
    *count = drawing;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *h, memory_t *m) {
    MAY_FAIL;
    m->total = h == INSTANCE ? 4000 : 8000;
    m->used = 300 + next("FAKE_USED", &used_asked); /* the driver's own 300 are in it */
    m->free = m->total - m->used;
    return 0;
}
#ifndef OLD
int nvmlDeviceGetMemoryInfo_v2(void *h, memory2_t *m) {
    MAY_FAIL;
    m->total = h == INSTANCE ? 4000 : 8000;
    m->reserved = 300;
    m->used = next("FAKE_USED", &used_asked);
    m->free = m->total - m->used;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned int *count, process_t *out) {
    MAY_FAIL;
    return processes(count, out);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned int *count, process_t *out) {
    int code = fails(__func__);
    return code ? code : nvmlDeviceGetGraphicsRunningProcesses_v2(h, count, out);
}
int nvmlDeviceGetMigMode(void *h, unsigned int *now, unsigned int *later) {
    *now = *later = getenv("FAKE_MIG") != NULL;
    return 0;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned int i, void **handle) { *handle = INSTANCE; return 0; }
int nvmlDeviceIsMigDeviceHandle(void *h, unsigned int *is) { *is = h == INSTANCE; return 0; }
#endif
