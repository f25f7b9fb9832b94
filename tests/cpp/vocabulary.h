// Tests of the pieces in csrc/cpu/isa, compiled once per CPU target like them.
#pragma once

namespace bigmodel::cpu::BIGMODEL_TARGET {

void test_vectors();
void test_math();
void test_products();

}  // namespace bigmodel::cpu::BIGMODEL_TARGET
