// The error tree. Every message is one sentence for the user: what, where, expected, found, next
// step.
#pragma once

#include <stdexcept>
#include <string>

namespace lsg {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct FormatError : Error {
  using Error::Error;
};
struct CheckpointError : Error {
  using Error::Error;
};
struct UnsupportedIsaError : Error {
  using Error::Error;
};
struct CapacityError : Error {
  using Error::Error;
};
struct CompatError : Error {
  using Error::Error;
};

}  // namespace lsg
