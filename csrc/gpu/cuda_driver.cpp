#include "gpu/cuda_driver.h"

#include <dlfcn.h>

#include "base/error.h"

namespace lsg {

CudaDriver::CudaDriver(const std::string& library)
    : library_(dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL), [](void* handle) {
        if (handle != nullptr) dlclose(handle);
      }) {
  if (library_ == nullptr) {
    throw CompatError("no CUDA driver: " + std::string(dlerror()) +
                      "; install NVIDIA's driver, or serve with --device cpu");
  }
  const auto find = [&](auto& function, const char* name) {
    void* address = dlsym(library_.get(), name);
    if (address == nullptr) {
      throw CompatError(library + " has no " + name +
                        "; lsg needs NVIDIA's driver for CUDA 12 or newer");
    }
    function = reinterpret_cast<std::decay_t<decltype(function)>>(address);
  };
  find(get_error_string, "cuGetErrorString");
  find(mem_host_alloc, "cuMemHostAlloc");
  find(mem_free_host, "cuMemFreeHost");
  find(mem_host_get_device_pointer, "cuMemHostGetDevicePointer_v2");
  find(memcpy_dtoh_async, "cuMemcpyDtoHAsync_v2");
  find(memcpy_htod_async, "cuMemcpyHtoDAsync_v2");
  find(launch_host_func, "cuLaunchHostFunc");
  find(stream_batch_mem_op, "cuStreamBatchMemOp_v2");
  find(module_load_data, "cuModuleLoadData");
  find(module_unload, "cuModuleUnload");
  find(module_get_function, "cuModuleGetFunction");
  find(launch_kernel, "cuLaunchKernel");
}

void CudaDriver::Check(CuResult result, const char* what) const {
  if (result == 0) return;
  const char* text = nullptr;
  get_error_string(result, &text);
  throw Error("the CUDA driver failed to " + std::string(what) + ": " +
              (text != nullptr ? text : "unknown error") + " (" + std::to_string(result) + ")");
}

}  // namespace lsg
