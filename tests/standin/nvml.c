/* A stand-in for NVIDIA's libnvidia-ml.so.1, for tests. It answers from a text file that may change at any time (named by
 * NVML_STANDIN_STATE), and notes the name of each function called in another (NVML_STANDIN_LOG). mod.rs writes the file
 * and describes its lines. Structures and numbers are those of nvml.h; only what gamdok asks for is here, and the setters,
 * so that a call of one is seen. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10, LOST = 15 };
enum { MAX_GPUS = 32, MAX_PROCESSES = 32, MAX_ERRORS = 32, MAX_INSTANCES = 8, MAX_EVENTS = 16 };

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;
typedef struct { char what[32]; int code; } Error;
typedef struct { unsigned long long sequence, type, data; } Event;

typedef struct {
    char uuid[96], name[96], pci[32];
    int is_instance, parent, mig, instances[MAX_INSTANCES], instance_count;
    unsigned long long total, used, reserved, energy, ecc, throttle;
    unsigned util, mode, temperature, power, recovery, rows_pending, rows_failed, persistence;
    Process lists[3][MAX_PROCESSES];
    unsigned counts[3];
    Error errors[MAX_ERRORS];
    int error_count;
    Event events[MAX_EVENTS];
    int event_count;
} Gpu;

typedef struct {
    int init_code, hang;
    unsigned generation;
    Gpu gpus[MAX_GPUS];
    int gpu_count;
} State;

/* Handles outlive states: they name a device by its UUID. */
typedef struct { char uuid[96]; unsigned long long delivered; } Handle;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static State state;
static struct stat stamp;
static Handle handles[256];
static int handle_count;
static unsigned generation;
static int users;

static void parse(FILE *file) {
    static char line[512];
    Gpu *gpu = NULL;
    memset(&state, 0, sizeof state);
    while (fgets(line, sizeof line, file)) {
        char key[32] = "", rest[400] = "";
        if (sscanf(line, "%31s %399[^\n]", key, rest) < 1) continue;
        if (!strcmp(key, "init")) state.init_code = atoi(rest);
        else if (!strcmp(key, "hang")) state.hang = atoi(rest);
        else if (!strcmp(key, "generation")) state.generation = atoi(rest);
        else if ((!strcmp(key, "gpu") || !strcmp(key, "instance")) && state.gpu_count < MAX_GPUS) {
            int index = state.gpu_count++, parent = -1;
            gpu = &state.gpus[index];
            snprintf(gpu->uuid, sizeof gpu->uuid, "%s", rest);
            snprintf(gpu->name, sizeof gpu->name, "Stand-in GPU");
            gpu->persistence = 1;
            if (!strcmp(key, "instance")) {
                for (parent = index - 1; parent > 0 && state.gpus[parent].is_instance;) parent--;
                Gpu *board = &state.gpus[parent];
                gpu->is_instance = 1;
                gpu->parent = parent;
                if (board->instance_count < MAX_INSTANCES) board->instances[board->instance_count++] = index;
            }
        } else if (!gpu) continue;
        else if (!strcmp(key, "name")) snprintf(gpu->name, sizeof gpu->name, "%s", rest);
        else if (!strcmp(key, "pci")) snprintf(gpu->pci, sizeof gpu->pci, "%s", rest);
        else if (!strcmp(key, "total")) gpu->total = strtoull(rest, 0, 10);
        else if (!strcmp(key, "used")) gpu->used = strtoull(rest, 0, 10);
        else if (!strcmp(key, "reserved")) gpu->reserved = strtoull(rest, 0, 10);
        else if (!strcmp(key, "util")) gpu->util = atoi(rest);
        else if (!strcmp(key, "mode")) gpu->mode = atoi(rest);
        else if (!strcmp(key, "temperature")) gpu->temperature = atoi(rest);
        else if (!strcmp(key, "power")) gpu->power = atoi(rest);
        else if (!strcmp(key, "energy")) gpu->energy = strtoull(rest, 0, 10);
        else if (!strcmp(key, "ecc")) gpu->ecc = strtoull(rest, 0, 10);
        else if (!strcmp(key, "throttle")) gpu->throttle = strtoull(rest, 0, 10);
        else if (!strcmp(key, "recovery")) gpu->recovery = atoi(rest);
        else if (!strcmp(key, "rows")) sscanf(rest, "%u %u", &gpu->rows_pending, &gpu->rows_failed);
        else if (!strcmp(key, "persistence")) gpu->persistence = atoi(rest);
        else if (!strcmp(key, "mig")) gpu->mig = atoi(rest);
        else if (!strcmp(key, "process")) {
            char kind[16];
            unsigned pid;
            unsigned long long memory;
            if (sscanf(rest, "%15s %u %llu", kind, &pid, &memory) != 3) continue;
            int list = !strcmp(kind, "compute") ? 0 : !strcmp(kind, "mps") ? 1 : 2;
            if (gpu->counts[list] < MAX_PROCESSES)
                gpu->lists[list][gpu->counts[list]++] = (Process){pid, memory, ~0u, ~0u};
        } else if (!strcmp(key, "error") && gpu->error_count < MAX_ERRORS) {
            Error *error = &gpu->errors[gpu->error_count++];
            sscanf(rest, "%31s %d", error->what, &error->code);
        } else if (!strcmp(key, "event") && gpu->event_count < MAX_EVENTS) {
            Event *event = &gpu->events[gpu->event_count++];
            sscanf(rest, "%llu %llu %llu", &event->sequence, &event->type, &event->data);
        }
    }
}

static void load(void) {
    const char *path = getenv("NVML_STANDIN_STATE");
    struct stat now;
    if (!path || stat(path, &now)) return;
    if (now.st_ino == stamp.st_ino && now.st_size == stamp.st_size && now.st_mtim.tv_sec == stamp.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == stamp.st_mtim.tv_nsec)
        return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    parse(file);
    fclose(file);
    stamp = now;
}

static void note(const char *name) {
    const char *path = getenv("NVML_STANDIN_LOG");
    char line[128];
    if (!path) return;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) return;
    int length = snprintf(line, sizeof line, "%s\n", name);
    if (write(fd, line, length) < 0) { /* a lost note only weakens a test */ }
    close(fd);
}

/* Every function begins here: it notes its name, hangs while the state says so, and sees the newest state. */
static int enter(const char *name) {
    note(name);
    pthread_mutex_lock(&lock);
    load();
    while (state.hang) {
        pthread_mutex_unlock(&lock);
        nanosleep(&(struct timespec){0, 5000000}, NULL);
        pthread_mutex_lock(&lock);
        load();
    }
    return !users || generation != state.generation ? UNINITIALIZED : SUCCESS;
}

static int leave(int code) {
    pthread_mutex_unlock(&lock);
    return code;
}

#define BEGIN int code = enter(__func__); if (code) return leave(code)

static Gpu *find(const Handle *handle) {
    for (int i = 0; i < state.gpu_count; i++)
        if (!strcmp(state.gpus[i].uuid, handle->uuid)) return &state.gpus[i];
    return NULL;
}

static int failure(const Gpu *gpu, const char *what) {
    if (!gpu) return LOST;
    for (int i = 0; i < gpu->error_count; i++)
        if (!strcmp(gpu->errors[i].what, what) || !strcmp(gpu->errors[i].what, "all")) return gpu->errors[i].code;
    return SUCCESS;
}

#define BEGIN_GPU(what) \
    BEGIN; \
    Gpu *gpu = find(device); \
    if ((code = failure(gpu, what))) return leave(code)

static Handle *handle_of(const Gpu *gpu) {
    for (int i = 0; i < handle_count; i++)
        if (!strcmp(handles[i].uuid, gpu->uuid)) return &handles[i];
    Handle *handle = &handles[handle_count++ % 256];
    memcpy(handle->uuid, gpu->uuid, sizeof handle->uuid);
    return handle;
}

/* The n-th GPU that is no MIG instance. */
static Gpu *board(unsigned index) {
    for (int i = 0; i < state.gpu_count; i++)
        if (!state.gpus[i].is_instance && index-- == 0) return &state.gpus[i];
    return NULL;
}

int nvmlInit_v2(void) {
    enter(__func__);
    if (!state.init_code) {
        users++;
        generation = state.generation;
    }
    return leave(state.init_code);
}

int nvmlShutdown(void) {
    enter(__func__);
    if (users) users--;
    return leave(SUCCESS);
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    BEGIN;
    snprintf(version, length, "570.00");
    return leave(SUCCESS);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    BEGIN;
    *count = 0;
    while (board(*count)) ++*count;
    return leave(SUCCESS);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **device) {
    BEGIN;
    Gpu *gpu = board(index);
    if (!gpu) return leave(INVALID);
    if ((code = failure(gpu, "handle"))) return leave(code);
    *device = handle_of(gpu);
    return leave(SUCCESS);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Handle **device) {
    BEGIN;
    for (int i = 0; i < state.gpu_count; i++)
        if (!strcmp(state.gpus[i].uuid, uuid)) {
            *device = handle_of(&state.gpus[i]);
            return leave(SUCCESS);
        }
    return leave(NOT_FOUND);
}

int nvmlDeviceGetUUID(Handle *device, char *uuid, unsigned length) {
    BEGIN_GPU("uuid");
    snprintf(uuid, length, "%s", gpu->uuid);
    return leave(SUCCESS);
}

int nvmlDeviceGetName(Handle *device, char *name, unsigned length) {
    BEGIN_GPU("name");
    snprintf(name, length, "%s", gpu->name);
    return leave(SUCCESS);
}

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;

int nvmlDeviceGetPciInfo_v3(Handle *device, Pci *pci) {
    BEGIN_GPU("pci");
    if (!*gpu->pci) return leave(NOT_SUPPORTED);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%s", gpu->pci);
    return leave(SUCCESS);
}

#ifndef OLD_DRIVER
typedef struct { unsigned version; unsigned long long total, reserved, available, used; } Memory2;

int nvmlDeviceGetMemoryInfo_v2(Handle *device, Memory2 *memory) {
    BEGIN_GPU("memory");
    if (memory->version != (sizeof *memory | 2 << 24)) return leave(INVALID);
    memory->total = gpu->total;
    memory->reserved = gpu->reserved;
    memory->used = gpu->used;
    memory->available = gpu->total - gpu->used - gpu->reserved;
    return leave(SUCCESS);
}
#endif

typedef struct { unsigned long long total, available, used; } Memory1;

int nvmlDeviceGetMemoryInfo(Handle *device, Memory1 *memory) {
    BEGIN_GPU("memory");
    memory->total = gpu->total;
    memory->used = gpu->used + gpu->reserved;
    memory->available = gpu->total - memory->used;
    return leave(SUCCESS);
}

typedef struct { unsigned gpu, memory; } Utilization;

int nvmlDeviceGetUtilizationRates(Handle *device, Utilization *rates) {
    BEGIN_GPU("util");
    if (gpu->is_instance) return leave(NOT_SUPPORTED);
    rates->gpu = gpu->util;
    rates->memory = 0;
    return leave(SUCCESS);
}

static int list(Gpu *gpu, int kind, unsigned *count, Process *processes) {
    unsigned room = *count;
    *count = gpu->counts[kind];
    if (!*count) return SUCCESS;
    if (room < *count) return TOO_SMALL;
    memcpy(processes, gpu->lists[kind], *count * sizeof *processes);
    return SUCCESS;
}

#ifdef OLD_DRIVER
#define COMPUTE nvmlDeviceGetComputeRunningProcesses_v2
#define GRAPHICS nvmlDeviceGetGraphicsRunningProcesses_v2
#else
#define COMPUTE nvmlDeviceGetComputeRunningProcesses_v3
#define GRAPHICS nvmlDeviceGetGraphicsRunningProcesses_v3
int nvmlDeviceGetMPSComputeRunningProcesses_v3(Handle *device, unsigned *count, Process *processes) {
    BEGIN_GPU("mps");
    return leave(list(gpu, 1, count, processes));
}
#endif

int COMPUTE(Handle *device, unsigned *count, Process *processes) {
    BEGIN_GPU("compute");
    return leave(list(gpu, 0, count, processes));
}

int GRAPHICS(Handle *device, unsigned *count, Process *processes) {
    BEGIN_GPU("graphics");
    return leave(list(gpu, 2, count, processes));
}

int nvmlDeviceGetComputeMode(Handle *device, int *mode) {
    BEGIN_GPU("mode");
    *mode = gpu->mode;
    return leave(SUCCESS);
}

int nvmlDeviceGetTemperature(Handle *device, int sensor, unsigned *degrees) {
    (void)sensor;
    BEGIN_GPU("temperature");
    *degrees = gpu->temperature;
    return leave(SUCCESS);
}

int nvmlDeviceGetPowerUsage(Handle *device, unsigned *milliwatts) {
    BEGIN_GPU("power");
    *milliwatts = gpu->power;
    return leave(SUCCESS);
}

int nvmlDeviceGetTotalEnergyConsumption(Handle *device, unsigned long long *energy) {
    BEGIN_GPU("energy");
    *energy = gpu->energy;
    return leave(SUCCESS);
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Handle *device, unsigned long long *reasons) {
    BEGIN_GPU("throttle");
    *reasons = gpu->throttle;
    return leave(SUCCESS);
}

typedef union { double d; unsigned u; unsigned long long ull; } Value;
typedef struct { unsigned id, scope; long long timestamp, latency; int type, code; Value value; } Field;

int nvmlDeviceGetFieldValues(Handle *device, int count, Field *fields) {
    BEGIN_GPU("fields");
    for (int i = 0; i < count; i++) {
        fields[i].code = fields[i].id == 230 ? failure(gpu, "recovery") : NOT_SUPPORTED;
        fields[i].type = 1;
        fields[i].value.u = gpu->recovery;
    }
    return leave(SUCCESS);
}

int nvmlDeviceGetTotalEccErrors(Handle *device, int type, int counter, unsigned long long *count) {
    BEGIN_GPU("ecc");
    *count = type == 1 && counter == 0 ? gpu->ecc : 0;
    return leave(SUCCESS);
}

int nvmlDeviceGetEccMode(Handle *device, int *current, int *pending) {
    BEGIN_GPU("ecc");
    *current = *pending = 1;
    return leave(SUCCESS);
}

int nvmlDeviceGetRemappedRows(Handle *device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    BEGIN_GPU("rows");
    *corrected = *uncorrected = 0;
    *pending = gpu->rows_pending;
    *failed = gpu->rows_failed;
    return leave(SUCCESS);
}

int nvmlDeviceGetRetiredPagesPendingStatus(Handle *device, int *pending) {
    BEGIN_GPU("pages");
    (void)pending;
    return leave(NOT_SUPPORTED);
}

int nvmlDeviceGetPersistenceMode(Handle *device, int *mode) {
    BEGIN_GPU("persistence");
    *mode = gpu->persistence;
    return leave(SUCCESS);
}

int nvmlDeviceGetMigMode(Handle *device, unsigned *current, unsigned *pending) {
    BEGIN_GPU("mig");
    *current = *pending = gpu->mig;
    return leave(SUCCESS);
}

int nvmlDeviceGetMaxMigDeviceCount(Handle *device, unsigned *count) {
    BEGIN_GPU("mig");
    *count = gpu->mig ? MAX_INSTANCES - 1 : 0;
    return leave(SUCCESS);
}

/* Real indexes have gaps: every other one is empty here. */
int nvmlDeviceGetMigDeviceHandleByIndex(Handle *device, unsigned index, Handle **instance) {
    BEGIN_GPU("mig");
    if (index % 2 || (int)(index / 2) >= gpu->instance_count) return leave(NOT_FOUND);
    *instance = handle_of(&state.gpus[gpu->instances[index / 2]]);
    return leave(SUCCESS);
}

/* Event sets: each remembers its one device. */
typedef struct { Handle *device; unsigned long long types; } Set;
typedef struct { Handle *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } EventData;

int nvmlEventSetCreate(Set **set) {
    BEGIN;
    *set = calloc(1, sizeof **set);
    return leave(SUCCESS);
}

int nvmlEventSetFree(Set *set) {
    enter(__func__);
    free(set);
    return leave(SUCCESS);
}

int nvmlDeviceGetSupportedEventTypes(Handle *device, unsigned long long *types) {
    BEGIN_GPU("events");
    *types = 1 | 2 | 8 | 256;
    return leave(SUCCESS);
}

int nvmlDeviceRegisterEvents(Handle *device, unsigned long long types, Set *set) {
    BEGIN_GPU("events");
    /* Events of before the registration are lost. */
    for (int i = 0; i < gpu->event_count; i++)
        if (gpu->events[i].sequence > device->delivered) device->delivered = gpu->events[i].sequence;
    *set = (Set){device, types};
    return leave(SUCCESS);
}

int nvmlEventSetWait_v2(Set *set, EventData *data, unsigned milliseconds) {
    (void)milliseconds;
    BEGIN;
    Gpu *gpu = find(set->device);
    if ((code = failure(gpu, "wait"))) return leave(code);
    for (int i = 0; i < gpu->event_count; i++) {
        Event *event = &gpu->events[i];
        if (event->sequence <= set->device->delivered || !(event->type & set->types)) continue;
        set->device->delivered = event->sequence;
        *data = (EventData){set->device, event->type, event->data, ~0u, ~0u};
        return leave(SUCCESS);
    }
    return leave(TIMEOUT);
}

/* What must never be called. */
#define SETTER(name) int name(void) { note("SETTER " #name); return SUCCESS; }
SETTER(nvmlDeviceSetPersistenceMode)
SETTER(nvmlDeviceSetComputeMode)
SETTER(nvmlDeviceSetEccMode)
SETTER(nvmlDeviceClearEccErrorCounts)
SETTER(nvmlDeviceSetApplicationsClocks)
SETTER(nvmlDeviceResetApplicationsClocks)
SETTER(nvmlDeviceSetGpuLockedClocks)
SETTER(nvmlDeviceResetGpuLockedClocks)
SETTER(nvmlDeviceSetPowerManagementLimit)
SETTER(nvmlDeviceSetGpuOperationMode)
SETTER(nvmlDeviceSetAccountingMode)
SETTER(nvmlDeviceClearAccountingPids)
SETTER(nvmlDeviceSetAutoBoostedClocksEnabled)
SETTER(nvmlDeviceSetCpuAffinity)
SETTER(nvmlDeviceClearCpuAffinity)
SETTER(nvmlDeviceSetMigMode)
SETTER(nvmlDeviceCreateGpuInstance)
SETTER(nvmlDeviceModifyDrainState)
SETTER(nvmlDeviceRemoveGpu_v2)
