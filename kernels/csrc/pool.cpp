// Threads that wait for work: they spin for some tens of microseconds, because the next layer usually comes at once,
// then sleep in the kernel so that an idle engine costs nothing.
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <exception>
#include <mutex>
#include <utility>
#include <thread>

#include "linear.h"
#include "simd.h"

namespace lavila {
namespace {

constexpr auto kSpin = std::chrono::microseconds(60);

void futex(std::atomic<uint32_t>& word, int op, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), op | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

// Spins until done() or the time is over; says which.
template <class F>
bool spin(const F& done) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (done()) return true;
            _mm_pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return done();
}

}  // namespace

// A round of work: `gate` holds its number, how many workers are inside, and whether more may enter. The caller takes
// tasks too and waits only for who entered, so a worker that the machine has no time for holds nobody up. A task that
// throws ends its round: who has a task finishes it, nobody takes another, and the caller throws the first exception.
struct Pool::Impl {
    std::vector<std::thread> workers;
    // A thread's tasks: neighbours, and the same ones for the same number of tasks, so that what it wrote a round ago
    // is still in its cache. Who is done takes from the others.
    struct alignas(64) Share {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };
    const std::function<void(int64_t)>* body = nullptr;
    std::vector<Share> shares;
    std::atomic<uint64_t> gate{0};  // round << 32 | inside << 1 | open
    std::atomic<uint32_t> round{0}, sleepers{0};
    std::atomic<bool> stop{false};
    std::atomic<bool> failed{false};
    std::exception_ptr failure;  // written by who set `failed`, read by the caller when all have left
    std::mutex one_caller;

    // Of a thread, into `shares`, without letting an exception out.
    void take_safely(size_t thread) {
        try {
            take(thread);
        } catch (...) {
            if (!failed.exchange(true)) failure = std::current_exception();
            for (Share& share : shares) share.next.store(share.end, std::memory_order_relaxed);
        }
    }

    void take(size_t thread) {
        for (size_t i = 0; i < shares.size(); ++i) {
            Share& from = shares[(thread + i) % shares.size()];
            for (int64_t task; (task = from.next.fetch_add(1, std::memory_order_relaxed)) < from.end;) (*body)(task);
        }
    }

    bool enter(uint32_t seen) {
        uint64_t now = gate.load(std::memory_order_relaxed);
        while (now >> 32 == seen && (now & 1))
            if (gate.compare_exchange_weak(now, now + 2, std::memory_order_acquire)) return true;
        return false;
    }

    void work(size_t thread) {
        for (uint32_t seen = 0;;) {
            const auto news = [&] { return round.load(std::memory_order_acquire) != seen; };
            while (!spin(news)) {
                sleepers.fetch_add(1);
                futex(round, FUTEX_WAIT, seen);
                sleepers.fetch_sub(1);
            }
            seen = round.load(std::memory_order_acquire);
            if (stop) return;
            if (!enter(seen)) continue;
            take_safely(thread);
            gate.fetch_sub(2, std::memory_order_release);
        }
    }

    void announce() {
        round.fetch_add(1);  // sequentially consistent: a worker that misses it has been counted as a sleeper
        if (sleepers.load()) futex(round, FUTEX_WAKE, INT_MAX);
    }

    ~Impl() {
        stop = true;
        announce();
        for (auto& worker : workers) worker.join();
    }
};

Pool::Pool(int threads) {
    auto made = std::make_unique<Impl>();  // ends the threads it has where the system gives no more of them
    made->shares = std::vector<Impl::Share>(size_t(std::max(threads, 1)));
    for (int i = 1; i < threads; ++i) made->workers.emplace_back(&Impl::work, made.get(), size_t(i));
    impl_ = made.release();
}

Pool::~Pool() { delete impl_; }

int Pool::threads() const { return int(impl_->workers.size()) + 1; }

void Pool::share(int64_t tasks, const std::function<void(int64_t)>& body) {
    if (tasks <= 1 || impl_->workers.empty()) {
        for (int64_t task = 0; task < tasks; ++task) body(task);
        return;
    }
    Impl& it = *impl_;
    const std::lock_guard<std::mutex> lock(it.one_caller);
    it.body = &body;
    const int64_t shares = int64_t(it.shares.size());
    for (int64_t i = 0; i < shares; ++i) {
        it.shares[size_t(i)].next.store(tasks * i / shares, std::memory_order_relaxed);
        it.shares[size_t(i)].end = tasks * (i + 1) / shares;
    }
    it.gate.store(uint64_t(it.round.load() + 1) << 32 | 1, std::memory_order_release);
    it.announce();
    it.take_safely(0);
    it.gate.fetch_and(~uint64_t(1));
    const auto empty = [&] { return (it.gate.load(std::memory_order_acquire) & 0xfffffffe) == 0; };
    while (!spin(empty)) sched_yield();
    if (it.failed.exchange(false)) std::rethrow_exception(std::exchange(it.failure, nullptr));
}

void Pool::run(const std::function<void(int)>& body) {
    share(threads(), [&](int64_t part) { body(int(part)); });
}

}  // namespace lavila
