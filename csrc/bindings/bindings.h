// One function per bound class; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "engine/batch.h"

namespace lsg {

void BindFormat(pybind11::module_& module);
void BindConvert(pybind11::module_& module);
void BindKernels(pybind11::module_& module);
void BindLimits(pybind11::module_& module);
void BindEngine(pybind11::module_& module);
void BindHandOver(pybind11::module_& module);

// "f32", "bf16" or "f16". Throws Error.
FloatDtype ParseFloatDtype(const std::string& name);

}  // namespace lsg
