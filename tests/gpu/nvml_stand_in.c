/*
 * A stand-in for NVIDIA's libnvidia-ml.so.1 that simulates the GPUs described by a text file.
 *
 * The environment variable NVML_STAND_IN names the file. It is read again whenever it changes, so that a test can remove
 * a GPU while a program is watching it. An empty file means eight idle RTX 4090s. A line is one of
 *
 *     cards N | init ERROR | driver VERSION | cuda NUMBER
 *     CARD error ERROR                      every call about the GPU fails with it; CARD is a number, or * for all
 *     CARD name TEXT | CARD uuid TEXT | CARD bus TEXT
 *     CARD process PID BYTES [SLICE] | CARD graphics PID BYTES | CARD mps PID BYTES
 *                                           computes; draws; computes as a client of CUDA's MPS
 *     CARD slice USED TOTAL                 a MIG slice
 *     CARD READING VALUE|!ERROR             see `readings`; !3 is NVML_ERROR_NOT_SUPPORTED
 *
 * Structures and error numbers are those of nvidia-ml-py's pynvml.py.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MOST_CARDS = 32, MOST_PROCESSES = 32, MOST_SLICES = 8 };

typedef unsigned long long bytes_t;
enum reading { USED, TOTAL, RESERVED, MEMORY, MEMORY_V2, UTILISATION, TEMPERATURE, POWER, LIMIT, FAN, RECEIVED, SENT,
               ENERGY, SLOWDOWNS, PROCESSES, READINGS };
static const char *readings[READINGS] = {"used", "total", "reserved", "memory", "memory_v2",
                                         "utilisation", "temperature", "power", "limit", "fan",
                                         "received", "sent", "energy", "slowdowns", "processes"};

struct value { int error; bytes_t number; };
struct process { unsigned pid; bytes_t memory; int slice; char kind; }; /* kind: p, g or m */
struct device { int card, slice; bytes_t used, total; }; /* handles point at it; slice is -1 for the GPU itself */
struct card {
    struct device self, slices[MOST_SLICES];
    char name[96], uuid[96], bus[32];
    int error, slice_count, process_count;
    struct value values[READINGS];
    struct process processes[MOST_PROCESSES];
};

static struct card cards[MOST_CARDS];
static int card_count, init_error, cuda_version;
static char driver_version[80];

static void set_defaults(void) {
    card_count = 8, init_error = 0, cuda_version = 12040;
    strcpy(driver_version, "550.54.14");
    memset(cards, 0, sizeof cards);
    for (int i = 0; i < MOST_CARDS; i++) {
        struct card *card = &cards[i];
        const bytes_t numbers[READINGS] = {
            [USED] = 1 << 20, [TOTAL] = 25757220864ULL, [RESERVED] = 434 << 20, [TEMPERATURE] = 30 + i,
            [POWER] = 20000 + 1000 * i, [LIMIT] = 450000, [FAN] = 30, [ENERGY] = 1000000};
        card->self = (struct device){i, -1, 0, 0};
        strcpy(card->name, "NVIDIA GeForce RTX 4090");
        snprintf(card->uuid, sizeof card->uuid, "GPU-%08d-0000-4090-8000-000000000000", i);
        snprintf(card->bus, sizeof card->bus, "00000000:%02X:00.0", i * 0x10 + 1);
        for (int reading = 0; reading < READINGS; reading++) card->values[reading].number = numbers[reading];
    }
}

static void set_card(int index, const char *key, const char *rest) {
    struct card *card = &cards[index];
    bytes_t first = 0, second = 0;
    int slice = -1, error;
    sscanf(rest, "%llu %llu %d", &first, &second, &slice);
    if (!strcmp(key, "error")) card->error = (int)first;
    if (!strcmp(key, "name")) snprintf(card->name, sizeof card->name, "%s", rest);
    if (!strcmp(key, "uuid")) snprintf(card->uuid, sizeof card->uuid, "%s", rest);
    if (!strcmp(key, "bus")) snprintf(card->bus, sizeof card->bus, "%s", rest);
    if ((!strcmp(key, "process") || !strcmp(key, "graphics") || !strcmp(key, "mps"))
        && card->process_count < MOST_PROCESSES)
        card->processes[card->process_count++] = (struct process){(unsigned)first, second, slice, key[0]};
    if (!strcmp(key, "slice") && card->slice_count < MOST_SLICES) {
        card->slices[card->slice_count] = (struct device){index, card->slice_count, first, second};
        card->slice_count++;
    }
    for (int reading = 0; reading < READINGS; reading++)
        if (!strcmp(key, readings[reading])) {
            card->values[reading].number = first;
            if (sscanf(rest, "!%d", &error) == 1) card->values[reading].error = error;
        }
}

static void read_file(void) {
    static struct stat seen;
    struct stat now;
    const char *path = getenv("NVML_STAND_IN");
    char line[512];
    FILE *file;
    if (!path || stat(path, &now)) {
        if (!card_count) set_defaults();
        return;
    }
    if (card_count && !memcmp(&now.st_mtim, &seen.st_mtim, sizeof now.st_mtim) && now.st_ino == seen.st_ino) return;
    if (!(file = fopen(path, "r"))) return;
    seen = now;
    set_defaults();
    while (fgets(line, sizeof line, file)) {
        char who[16] = "", key[32] = "", rest[256] = "";
        sscanf(line, "%15s %31s %255[^\n]", who, key, rest);
        if (!strcmp(who, "cards")) card_count = atoi(key);
        else if (!strcmp(who, "init")) init_error = atoi(key);
        else if (!strcmp(who, "cuda")) cuda_version = atoi(key);
        else if (!strcmp(who, "driver")) snprintf(driver_version, sizeof driver_version, "%s", key);
        else if (who[0] == '*') for (int i = 0; i < MOST_CARDS; i++) set_card(i, key, rest);
        else if (who[0] >= '0' && who[0] <= '9' && atoi(who) < MOST_CARDS) set_card(atoi(who), key, rest);
    }
    fclose(file);
}

static int card_of(const struct device *device, struct card **card) {
    read_file();
    *card = &cards[device->card];
    return (*card)->error;
}

/* A reading of a GPU; MIG slices have only their memory. */
static int read_value(const struct device *device, enum reading reading, bytes_t *number) {
    struct card *card;
    int error = card_of(device, &card);
    if (!error && device->slice >= 0) error = NOT_SUPPORTED;
    if (!error) error = card->values[reading].error;
    if (!error) *number = card->values[reading].number;
    return error;
}

static int read_unsigned(const struct device *device, enum reading reading, unsigned *number) {
    bytes_t wide = 0;
    int error = read_value(device, reading, &wide);
    if (!error) *number = (unsigned)wide;
    return error;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; read_file(); return init_error; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { (void)error; return "an error of the stand-in"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    read_file();
    snprintf(text, size, "%s", driver_version);
    return SUCCESS;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { read_file(); *version = cuda_version; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { read_file(); *count = (unsigned)card_count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
    read_file();
    if ((int)index >= card_count) return INVALID_ARGUMENT;
    *device = &cards[index].self;
    return cards[index].error;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **device) {
    char slice_uuid[128];
    read_file();
    for (int i = 0; i < card_count; i++) {
        if (!strcmp(cards[i].uuid, uuid)) { *device = &cards[i].self; return cards[i].error; }
        for (int slice = 0; slice < cards[i].slice_count; slice++) {
            snprintf(slice_uuid, sizeof slice_uuid, "MIG-%d-%s", slice, cards[i].uuid + 4);
            if (!strcmp(slice_uuid, uuid)) { *device = &cards[i].slices[slice]; return cards[i].error; }
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, struct device **device) {
    unsigned domain, number, wanted_domain, wanted;
    read_file();
    if (sscanf(bus, "%x:%x", &wanted_domain, &wanted) != 2) return INVALID_ARGUMENT;
    for (int i = 0; i < card_count; i++)
        if (sscanf(cards[i].bus, "%x:%x", &domain, &number) == 2 && domain == wanted_domain && number == wanted) {
            *device = &cards[i].self;
            return cards[i].error;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetName(const struct device *device, char *text, unsigned size) {
    struct card *card;
    int error = card_of(device, &card);
    if (device->slice >= 0) snprintf(text, size, "%s MIG 1g.5gb", card->name);
    else snprintf(text, size, "%s", card->name);
    return error;
}

int nvmlDeviceGetUUID(const struct device *device, char *text, unsigned size) {
    struct card *card;
    int error = card_of(device, &card);
    if (device->slice >= 0) snprintf(text, size, "MIG-%d-%s", device->slice, card->uuid + 4);
    else snprintf(text, size, "%s", card->uuid);
    return error;
}

struct pci { char legacy[16]; unsigned domain, bus, device, device_id, subsystem_id; char bus_id[32]; };
int nvmlDeviceGetPciInfo_v3(const struct device *device, struct pci *pci) {
    struct card *card;
    int error = card_of(device, &card);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%s", card->bus);
    return error;
}

static int memory_of(const struct device *device, bytes_t *total, bytes_t *reserved, bytes_t *used) {
    struct card *card;
    int error = card_of(device, &card);
    if (!error) error = card->values[MEMORY].error;
    *total = device->slice < 0 ? card->values[TOTAL].number : device->total;
    *used = device->slice < 0 ? card->values[USED].number : device->used;
    *reserved = device->slice < 0 ? card->values[RESERVED].number : 0;
    return error;
}

struct memory { bytes_t total, free, used; };
int nvmlDeviceGetMemoryInfo(const struct device *device, struct memory *memory) {
    bytes_t reserved;
    int error = memory_of(device, &memory->total, &reserved, &memory->used);
    memory->used += reserved; /* version 1 does not separate the two */
    memory->free = memory->total - memory->used;
    return error;
}

struct memory_v2 { unsigned version; bytes_t total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(const struct device *device, struct memory_v2 *memory) {
    int error = memory_of(device, &memory->total, &memory->reserved, &memory->used);
    if (!error) error = cards[device->card].values[MEMORY_V2].error;
    memory->free = memory->total - memory->reserved - memory->used;
    return error;
}

struct utilization { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(const struct device *device, struct utilization *rates) {
    rates->memory = 0;
    return read_unsigned(device, UTILISATION, &rates->gpu);
}

int nvmlDeviceGetTemperature(const struct device *device, int sensor, unsigned *celsius) {
    (void)sensor;
    return read_unsigned(device, TEMPERATURE, celsius);
}
int nvmlDeviceGetPowerUsage(const struct device *device, unsigned *milliwatts) {
    return read_unsigned(device, POWER, milliwatts);
}
int nvmlDeviceGetEnforcedPowerLimit(const struct device *device, unsigned *milliwatts) {
    return read_unsigned(device, LIMIT, milliwatts);
}
int nvmlDeviceGetFanSpeed(const struct device *device, unsigned *percent) {
    return read_unsigned(device, FAN, percent);
}
int nvmlDeviceGetTotalEnergyConsumption(const struct device *device, bytes_t *millijoules) {
    return read_value(device, ENERGY, millijoules);
}
int nvmlDeviceGetCurrentClocksEventReasons(const struct device *device, bytes_t *reasons) {
    return read_value(device, SLOWDOWNS, reasons);
}
int nvmlDeviceGetPcieThroughput(const struct device *device, int counter, unsigned *kilobytes) {
    return read_unsigned(device, counter ? RECEIVED : SENT, kilobytes);
}

struct process_info { unsigned pid; bytes_t memory; unsigned gpu_instance, compute_instance; };
static int list_processes(const struct device *device, char kind, unsigned *count, struct process_info *infos) {
    struct card *card;
    unsigned room = *count, found = 0;
    int error = card_of(device, &card);
    if (!error) error = card->values[PROCESSES].error;
    if (error) return error;
    for (int i = 0; i < card->process_count; i++) {
        const struct process *process = &card->processes[i];
        if (process->kind != kind || process->slice != device->slice) continue;
        if (found < room && infos) infos[found] = (struct process_info){process->pid, process->memory, 0, 0};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(const struct device *device, unsigned *count, struct process_info *infos) {
    return list_processes(device, 'p', count, infos);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(const struct device *device, unsigned *count, struct process_info *infos) {
    return list_processes(device, 'g', count, infos);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(const struct device *device, unsigned *count, struct process_info *infos) {
    return list_processes(device, 'm', count, infos);
}

int nvmlDeviceGetMigMode(const struct device *device, unsigned *current, unsigned *pending) {
    struct card *card;
    int error = card_of(device, &card);
    if (!error && !card->slice_count) error = NOT_SUPPORTED;
    *current = *pending = 1;
    return error;
}
int nvmlDeviceGetMaxMigDeviceCount(const struct device *device, unsigned *count) {
    struct card *card;
    int error = card_of(device, &card);
    *count = MOST_SLICES;
    return error;
}
int nvmlDeviceGetMigDeviceHandleByIndex(const struct device *device, unsigned index, struct device **slice) {
    struct card *card;
    int error = card_of(device, &card);
    if (!error && (int)index >= card->slice_count) error = NOT_FOUND;
    if (!error) *slice = &card->slices[index];
    return error;
}
