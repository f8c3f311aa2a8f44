// The part of the CUDA driver API that the hand-over needs, looked up when it is first wanted.
//
// Invariant: lsg neither links CUDA nor includes its headers. The declarations below are the
// documented ABI of cuda.h since CUDA 12; names with _v2 are what its macros stand for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace lsg {

using CuResult = int;
using CuStream = void*;
using CuModule = void*;
using CuFunction = void*;
using CuDevicePtr = unsigned long long;
using CuHostFn = void (*)(void*);

inline constexpr unsigned kCuMemHostAllocPortable = 1;
inline constexpr unsigned kCuMemHostAllocDeviceMap = 2;

// CUstreamBatchMemOpParams: every member is a struct of this shape or a shorter one, padded to six
// words.
struct CuMemOp {
  enum Operation : int { kWait32 = 1, kWrite32 = 2 };
  enum Flags : unsigned { kWaitEqual = 1, kWriteDefault = 0 };
  Operation operation;
  CuDevicePtr address;
  uint64_t value;  // the low half is the 32-bit operations' value
  unsigned flags;
  CuDevicePtr alias;
  uint64_t pad;
};
static_assert(sizeof(CuMemOp) == 48 && offsetof(CuMemOp, address) == 8 &&
              offsetof(CuMemOp, value) == 16 && offsetof(CuMemOp, flags) == 24 &&
              offsetof(CuMemOp, alias) == 32);

class CudaDriver {
 public:
  // Throws CompatError when the library or a function is missing.
  explicit CudaDriver(const std::string& library);

  // A non-zero result becomes an Error that names the call.
  void Check(CuResult result, const char* what) const;

  CuResult (*get_error_string)(CuResult, const char**);
  CuResult (*mem_host_alloc)(void**, size_t, unsigned);
  CuResult (*mem_free_host)(void*);
  CuResult (*mem_host_get_device_pointer)(CuDevicePtr*, void*, unsigned);
  CuResult (*memcpy_dtoh_async)(void*, CuDevicePtr, size_t, CuStream);
  CuResult (*memcpy_htod_async)(CuDevicePtr, const void*, size_t, CuStream);
  CuResult (*launch_host_func)(CuStream, CuHostFn, void*);
  CuResult (*stream_batch_mem_op)(CuStream, unsigned, CuMemOp*, unsigned);
  CuResult (*module_load_data)(CuModule*, const void*);
  CuResult (*module_unload)(CuModule);
  CuResult (*module_get_function)(CuFunction*, CuModule, const char*);
  CuResult (*launch_kernel)(CuFunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                            unsigned, CuStream, void**, void**);

 private:
  std::shared_ptr<void> library_;
};

}  // namespace lsg
