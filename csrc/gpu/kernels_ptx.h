// The two GPU kernels of the hand-over, in PTX, which the driver compiles for the GPU at hand.
//
// Invariant: a job's inputs are in host memory before its number is at the doorbell, and out is
// read only after `done` was seen set. Both flags are host memory, so all of this is ordered at
// system scope. A fence there waits for everything written to come through PCIe: lsg_send has one,
// by one thread for its whole block, and one more only when several blocks write.
#pragma once

namespace lsg {

inline constexpr char kSendKernel[] = "lsg_send";
inline constexpr char kReceiveKernel[] = "lsg_receive";

inline constexpr char kHandOverPtx[] = R"(
.version 7.0
.target sm_75
.address_size 64

// Blocks of the running lsg_send that have written their part.
.global .align 4 .u32 lsg_arrived = 0;

// Copies `vectors` 16-byte vectors of hidden and `entries` words of ids and weights, clears `done`
// and, from the last block, rings. `done` may be cleared by each block: the CPU sets it only after
// the bell, and the bell rings after all of them.
.visible .entry lsg_send(
    .param .u64 hidden_from, .param .u64 hidden_to, .param .u32 vectors_in,
    .param .u64 ids_from, .param .u64 ids_to,
    .param .u64 weights_from, .param .u64 weights_to, .param .u32 entries_in,
    .param .u64 done_at, .param .u64 doorbell_at, .param .u32 job_in)
{
    .reg .pred %p;
    .reg .b32 %i, %start, %stride, %vectors, %entries, %thread, %blocks, %last, %arrived, %job, %v<4>;
    .reg .b64 %hf, %ht, %if, %it, %wf, %wt, %done, %doorbell, %offset, %from, %to, %counter;

    ld.param.u64 %hf, [hidden_from];
    ld.param.u64 %ht, [hidden_to];
    ld.param.u32 %vectors, [vectors_in];
    ld.param.u64 %if, [ids_from];
    ld.param.u64 %it, [ids_to];
    ld.param.u64 %wf, [weights_from];
    ld.param.u64 %wt, [weights_to];
    ld.param.u32 %entries, [entries_in];
    ld.param.u64 %done, [done_at];
    ld.param.u64 %doorbell, [doorbell_at];
    ld.param.u32 %job, [job_in];
    cvta.to.global.u64 %hf, %hf;
    cvta.to.global.u64 %ht, %ht;
    cvta.to.global.u64 %if, %if;
    cvta.to.global.u64 %it, %it;
    cvta.to.global.u64 %wf, %wf;
    cvta.to.global.u64 %wt, %wt;
    cvta.to.global.u64 %done, %done;
    cvta.to.global.u64 %doorbell, %doorbell;
    mov.u32 %thread, %tid.x;
    mov.u32 %start, %ctaid.x;
    mov.u32 %stride, %ntid.x;
    mad.lo.u32 %start, %start, %stride, %thread;
    mov.u32 %blocks, %nctaid.x;
    mul.lo.u32 %stride, %stride, %blocks;

    mov.u32 %i, %start;
hidden_loop:
    setp.ge.u32 %p, %i, %vectors;
    @%p bra hidden_done;
    mul.wide.u32 %offset, %i, 16;
    add.u64 %from, %hf, %offset;
    add.u64 %to, %ht, %offset;
    ld.global.v4.u32 {%v0, %v1, %v2, %v3}, [%from];
    st.global.v4.u32 [%to], {%v0, %v1, %v2, %v3};
    add.u32 %i, %i, %stride;
    bra hidden_loop;
hidden_done:

    mov.u32 %i, %start;
routing_loop:
    setp.ge.u32 %p, %i, %entries;
    @%p bra routing_done;
    mul.wide.u32 %offset, %i, 4;
    add.u64 %from, %if, %offset;
    ld.global.u32 %v0, [%from];
    add.u64 %from, %wf, %offset;
    ld.global.u32 %v1, [%from];
    add.u64 %to, %it, %offset;
    st.global.u32 [%to], %v0;
    add.u64 %to, %wt, %offset;
    st.global.u32 [%to], %v1;
    add.u32 %i, %i, %stride;
    bra routing_loop;
routing_done:

    bar.sync 0;
    setp.ne.u32 %p, %thread, 0;
    @%p bra finished;
    st.relaxed.sys.global.u32 [%done], 0;
    setp.eq.u32 %p, %blocks, 1;
    @%p bra ring;
    fence.acq_rel.sys;
    mov.u64 %counter, lsg_arrived;
    atom.add.acq_rel.gpu.global.u32 %arrived, [%counter], 1;
    sub.u32 %last, %blocks, 1;
    setp.ne.u32 %p, %arrived, %last;
    @%p bra finished;
    st.relaxed.gpu.global.u32 [%counter], 0;
ring:
    st.release.sys.global.u32 [%doorbell], %job;
finished:
    ret;
}

// Waits for `done`, then copies `vectors` 16-byte vectors of out.
.visible .entry lsg_receive(
    .param .u64 out_from, .param .u64 out_to, .param .u32 vectors_in, .param .u64 done_at)
{
    .reg .pred %p;
    .reg .b32 %i, %stride, %vectors, %thread, %blocks, %set, %v<4>;
    .reg .b64 %of, %ot, %done, %offset, %from, %to;

    ld.param.u64 %of, [out_from];
    ld.param.u64 %ot, [out_to];
    ld.param.u32 %vectors, [vectors_in];
    ld.param.u64 %done, [done_at];
    cvta.to.global.u64 %of, %of;
    cvta.to.global.u64 %ot, %ot;
    cvta.to.global.u64 %done, %done;
    mov.u32 %thread, %tid.x;
    mov.u32 %i, %ctaid.x;
    mov.u32 %stride, %ntid.x;
    mad.lo.u32 %i, %i, %stride, %thread;
    mov.u32 %blocks, %nctaid.x;
    mul.lo.u32 %stride, %stride, %blocks;

    setp.ne.u32 %p, %thread, 0;
    @%p bra arrived;
poll:
    ld.acquire.sys.global.u32 %set, [%done];
    setp.eq.u32 %p, %set, 0;
    @%p bra poll;
arrived:
    bar.sync 0;

copy_loop:
    setp.ge.u32 %p, %i, %vectors;
    @%p bra copied;
    mul.wide.u32 %offset, %i, 16;
    add.u64 %from, %of, %offset;
    add.u64 %to, %ot, %offset;
    ld.relaxed.sys.global.v4.u32 {%v0, %v1, %v2, %v3}, [%from];
    st.global.v4.u32 [%to], {%v0, %v1, %v2, %v3};
    add.u32 %i, %i, %stride;
    bra copy_loop;
copied:
    ret;
}
)";

}  // namespace lsg
