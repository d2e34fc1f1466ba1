// SPDX-License-Identifier: Apache-2.0
// The group of one: no messages, so every exchange is done as soon as it is posted.
#include "host/host_communicator.h"

namespace farskip {
namespace {

class SelfExchange final : public Exchange {
 public:
  void post(int, std::span<const Outgoing>, std::span<Incoming>) override {}
  bool test() override { return true; }
  void abandon() noexcept override {}
};

class SelfEndpoint final : public Endpoint {
 public:
  explicit SelfEndpoint(std::string name) : name_(std::move(name)) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string name() const override { return name_ + " (self)"; }
  std::unique_ptr<Exchange> make_exchange() override { return std::make_unique<SelfExchange>(); }
  std::unique_ptr<Endpoint> split(const SplitPlan& plan) override {
    return std::make_unique<SelfEndpoint>(plan.name);
  }
  std::uint64_t changes() override { return 0; }
  void wait_for_change(std::uint64_t, std::chrono::steady_clock::time_point) override {}
  void fail(const std::string&) noexcept override {}

 private:
  std::string name_;
};

}  // namespace

Communicator make_self_communicator() {
  return Communicator(std::make_shared<HostCommunicator>(std::make_unique<SelfEndpoint>("world"),
                                                         std::make_shared<Progress>()));
}

}  // namespace farskip
