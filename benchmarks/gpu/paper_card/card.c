/* A card made of paper: CUDA's runtime and driver where memory is the host's and kernels do nothing.
 *
 * Enough for PyTorch's CUDA build and Triton to believe in an H100, so that all that surrounds the
 * kernels can be run, and their just-in-time compiler fills its cache, on a machine without a card.
 * Copies are real, so that what is moved to the card is there; what kernels should have written is
 * zero. make.py builds this into libcudart and libcuda, and fills every other library with functions
 * that return 0.
 */
#define _GNU_SOURCE
#define __CUDART_API_VERSION_INTERNAL
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "cuda.h"
#include "driver_types.h"

#define GIB (1ull << 30)
#define MEMORY (80 * GIB)
#define MULTIPROCESSORS 132
#define SHARED_OPTIN 232448
#define SHARED_MULTIPROCESSOR 233472

/* ---- memory: an arena of addresses, so that a pointer tells whose it is ------------------------ */

#define ARENA ((uintptr_t)0x100000000000ull)
#define ARENA_SIZE (64ull << 40)
#define SLOTS (1 << 16)

static struct {
    uintptr_t at;
    size_t size;
} slots[SLOTS];
static uintptr_t arena_end = ARENA;
static size_t held = 0;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int on_card(const void *p) {
    return (uintptr_t)p >= ARENA && (uintptr_t)p < ARENA + ARENA_SIZE;
}

static cudaError_t allocate(void **out, size_t size) {
    size = (size + 4095) / 4096 * 4096;
    cudaError_t outcome = cudaErrorMemoryAllocation;
    pthread_mutex_lock(&lock);
    if (!held) arena_end = ARENA;
    int room = held + size <= MEMORY && arena_end + size <= ARENA + ARENA_SIZE;
    for (int i = 0; i < SLOTS && room; ++i) {
        if (slots[i].size) continue;
        void *p = mmap((void *)arena_end, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
        if (p == MAP_FAILED) break;
        slots[i].at = arena_end, slots[i].size = size;
        arena_end += size + 4096; /* an access beyond the end is a fault */
        held += size;
        *out = p;
        outcome = cudaSuccess;
        break;
    }
    pthread_mutex_unlock(&lock);
    return outcome;
}

static cudaError_t release(void *p) {
    pthread_mutex_lock(&lock);
    for (int i = 0; p && i < SLOTS; ++i) {
        if (slots[i].size && slots[i].at == (uintptr_t)p) {
            munmap(p, slots[i].size);
            held -= slots[i].size;
            slots[i].size = 0;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t n) { return allocate(p, n); }
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return allocate(p, n); }
cudaError_t cudaFree(void *p) { return release(p); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return release(p); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) {
    return posix_memalign(p, 4096, n ? n : 1) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void *p) {
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *available = MEMORY - held, *total = MEMORY;
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
    memmove(to, from, n);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind,
                            cudaStream_t s) {
    memmove(to, from, n);
    return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t s) {
    for (size_t i = 0; i < height; ++i)
        memmove((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int value, size_t n) {
    memset(p, value, n);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) {
    memset(p, value, n);
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    a->type = on_card(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    a->devicePointer = a->hostPointer = (void *)p;
    return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) {
    static char room[1 << 16];
    *p = room;
    return cudaSuccess;
}

/* ---- the device ------------------------------------------------------------------------------- */

static int attribute_of(int attribute) { /* numbers are the same in the driver and the runtime */
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 2048;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return 32;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return MULTIPROCESSORS;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return SHARED_OPTIN;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return SHARED_MULTIPROCESSOR;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return 9;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return 0;
        case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH: return 1;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1980000;
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2619000;
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 5120;
        case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 50 << 20;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE: return 0;
        default: return 65536;
    }
}
cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute_of(attribute);
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "paper card (H100)");
    p->totalGlobalMem = MEMORY;
    p->major = 9;
    p->warpSize = 32;
    p->multiProcessorCount = MULTIPROCESSORS;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = SHARED_OPTIN;
    p->sharedMemPerMultiprocessor = SHARED_MULTIPROCESSOR;
    p->l2CacheSize = 50 << 20;
    p->cooperativeLaunch = p->unifiedAddressing = p->managedMemory = p->concurrentKernels = 1;
    for (int i = 0; i < 3; ++i) {
        p->maxGridSize[i] = i ? 65535 : 2147483647;
        p->maxThreadsDim[i] = i == 2 ? 64 : 1024;
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *n) {
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
    strncpy(text, "0000:00:00.0", length);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0, *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    *can = 0;
    return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "out of paper"; }
const char *cudaGetErrorName(cudaError_t e) { return e == cudaSuccess ? "cudaSuccess" : "cudaError"; }

/* ---- streams, events, graphs ------------------------------------------------------------------ */

static int dummy;
static __thread enum cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;

static cudaError_t handle(void *out) {
    *(void **)out = &dummy;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return handle(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) {
    return handle(s);
}
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) {
    *priority = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    *status = capturing;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph, const void **nodes,
                                     const void **edges, size_t *count) {
    *status = capturing;
    if (id) *id = 1;
    if (graph) handle(graph);
    if (count) *count = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, int mode) {
    capturing = cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    capturing = cudaStreamCaptureStatusNone;
    return handle(graph);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g,
                                          unsigned long long flags) {
    return handle(e);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *count) {
    *count = 1;
    return cudaSuccess;
}

static cudaError_t new_event(cudaEvent_t *e) {
    *e = calloc(1, sizeof(struct timespec));
    return cudaSuccess;
}
static cudaError_t record(cudaEvent_t e) {
    clock_gettime(CLOCK_MONOTONIC, (struct timespec *)e);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return new_event(e); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return new_event(e); }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return record(e); }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return record(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    free(e);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t a, cudaEvent_t b) {
    struct timespec *from = (struct timespec *)a, *to = (struct timespec *)b;
    *milliseconds = (to->tv_sec - from->tv_sec) * 1e3f + (to->tv_nsec - from->tv_nsec) * 1e-6f;
    return cudaSuccess;
}

/* ---- launches --------------------------------------------------------------------------------- */

typedef struct {
    unsigned x, y, z;
} size3;
static __thread struct {
    size3 grid, block;
    size_t shared;
    void *stream;
} pushed;

void **__cudaRegisterFatBinary(void *binary) {
    static void *registered;
    return &registered;
}
unsigned __cudaPushCallConfiguration(size3 grid, size3 block, size_t shared, void *stream) {
    pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(size3 *grid, size3 *block, size_t *shared, void *stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
    *(void **)stream = pushed.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(void *kernel, const void *function) { return handle(kernel); }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *function) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 64;
    a->binaryVersion = a->ptxVersion = 90;
    a->maxDynamicSharedSizeBytes = SHARED_OPTIN;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int threads,
                                                          size_t shared) {
    *n = 2;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int threads,
                                                                   size_t shared, unsigned flags) {
    *n = 2;
    return cudaSuccess;
}
static long nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, int *status) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (!*function) *function = (void *)nothing;
    if (status) *status = 0;
    return cudaSuccess;
}

/* ---- libraries that have to answer ------------------------------------------------------------ */

int cublasCreate_v2(void *out) { return handle(out); }
int cublasLtCreate(void *out) { return handle(out); }
int cublasGetVersion_v2(void *h, int *version) {
    *version = 130000;
    return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void *h, void *op, void *a, void *b, void *c, void *d,
                                   void *preference, int wanted, void *results, int *found) {
    memset(results, 0, 64); /* of one: an algorithm, no workspace, success */
    *found = 1;
    return 0;
}
int cudnnCreate(void *out) { return handle(out); }
size_t cudnnGetVersion(void) { return 91900; }
size_t cudnnGetCudartVersion(void) { return 13000; }
int cudnnGetProperty(int which, int *value) {
    static const int parts[] = {9, 19, 0};
    *value = parts[which % 3];
    return 0;
}
int cusparseCreate(void *out) { return handle(out); }
int cusolverDnCreate(void *out) { return handle(out); }

/* ---- the driver, as Triton asks for it -------------------------------------------------------- */

CUresult cuInit(unsigned flags) { return 0; }
CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}
CUresult cuGetErrorString(CUresult e, const char **text) {
    *text = "out of paper";
    return 0;
}
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = 0;
    return 0;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    *value = attribute_of(attribute);
    return 0;
}
static CUresult driver_handle(void *out) { return (CUresult)handle(out); }
CUresult cuModuleLoad(CUmodule *m, const char *path) { return driver_handle(m); }
CUresult cuModuleLoadData(CUmodule *m, const void *image) { return driver_handle(m); }
CUresult cuModuleLoadDataEx(CUmodule *m, const void *image, unsigned n, CUjit_option *options,
                            void **values) {
    return driver_handle(m);
}
CUresult cuModuleUnload(CUmodule m) { return 0; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) { return driver_handle(f); }
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
             : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 64
                                                                  : 0;
    return 0;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value) { return 0; }
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache config) { return 0; }
CUresult cuCtxGetCurrent(CUcontext *c) { return driver_handle(c); }
CUresult cuCtxSetCurrent(CUcontext c) { return 0; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
    *value = 0;
    return 0;
}
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice device) { return driver_handle(c); }
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    *flags = 0, *active = 1;
    return 0;
}
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *config) {
    *n = MULTIPROCESSORS;
    return 0;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction f, int threads,
                                                     size_t shared) {
    *n = 2;
    return 0;
}
CUresult cuPointerGetAttribute(void *out, CUpointer_attribute attribute, CUdeviceptr p) {
    if (!on_card((void *)p)) return CUDA_ERROR_INVALID_VALUE; /* as for a pointer to the host's */
    if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)out = p;
    else *(int *)out = 0;
    return 0;
}
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *at,
                                const cuuint64_t *sizes, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    return 0;
}
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream s, void **arguments, void **extra) {
    return 0;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **arguments,
                          void **extra) {
    return 0;
}
CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                   unsigned by, unsigned bz, unsigned shared, CUstream s,
                                   void **arguments) {
    return 0;
}
