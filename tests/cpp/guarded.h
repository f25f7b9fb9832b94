// Memory whose end is a page that may not be touched: reading or writing one element past it stops the test, by
// whatever instruction.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace bigmodel::test {

template <class T>
class Guarded {
 public:
  explicit Guarded(std::size_t count, std::size_t alignment = alignof(T)) : count_(count) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t bytes = (count * sizeof(T) + alignment - 1) / alignment * alignment;
    mapped_ = (bytes + page - 1) / page * page + page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) {
      std::perror("mmap");
      std::abort();
    }
    std::memset(base_, 0xa5, mapped_ - page);  // nobody may rely on zeros
    data_ = reinterpret_cast<T*>(base_ + mapped_ - page - bytes);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(base_, mapped_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  std::size_t size() const { return count_; }

 private:
  std::size_t count_, mapped_;
  char* base_;
  T* data_;
};

}  // namespace bigmodel::test
