/* A stand-in for libnvidia-ml.so.1 with one card, scripted through environment variables:
 *   FAKE_USED     bytes that the card holds, a comma-separated list: one value a question, the last one stays
 *   FAKE_PROCESS  bytes of the asking process, likewise; empty: NVML does not list it
 *   FAKE_DENIED   set: asking for processes is not permitted
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory2_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } process_t;

static unsigned long long next(const char *name, int *asked) {
    const char *at = getenv(name);
    for (int i = 0; at && i < *asked && strchr(at, ','); i++) at = strchr(at, ',') + 1;
    ++*asked;
    return at && *at ? strtoull(at, NULL, 10) : 0;
}
static int used_asked, process_asked;

int nvmlInitWithFlags(unsigned int flags) { used_asked = process_asked = 0; return 0; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **handle) { *handle = (void *)1; return i ? 2 : 0; }
int nvmlDeviceGetHandleByUUID(const char *id, void **handle) {
    *handle = (void *)1;
    return strcmp(id, "GPU-stand-in") ? 6 : 0;
}
int nvmlDeviceGetName(void *h, char *out, unsigned int n) { snprintf(out, n, "Stand-in 1000"); return 0; }
int nvmlSystemGetDriverVersion(char *out, unsigned int n) { snprintf(out, n, "1.2.3"); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, memory_t *m) {
    m->total = 8000; m->used = next("FAKE_USED", &used_asked); m->free = 8000 - m->used;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned int *count, process_t *out) {
    if (getenv("FAKE_DENIED")) return 4; /* NVML_ERROR_NO_PERMISSION */
    unsigned long long own = next("FAKE_PROCESS", &process_asked);
    if (*count < 2) { *count = 2; return 7; } /* NVML_ERROR_INSUFFICIENT_SIZE: ask with room */
    out[0] = (process_t){1, 77, 0, 0};
    out[1] = (process_t){own ? (unsigned int)getpid() : 2, own, 0, 0};
    *count = 2;
    return 0;
}
