"""Loops over flat memory written in LLVM IR, where what LLVM makes of a loop is far from what the processor can do."""

# pyright: reportCallIssue=false, reportArgumentType=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnn_lab.kernels.tiles import PAD, vector


def _over_vectors(builder, n, first, step):
    """A loop over j = 0, PAD, ... < n, at least once: carried = step(j, carried), from `first` (None: nothing is); returns the last one."""
    before, loop = builder.block, builder.append_basic_block("loop")
    builder.branch(loop)
    builder.position_at_end(loop)
    j, carried = builder.phi(n.type), None if first is None else builder.phi(first.type)
    following, new = builder.add(j, ir.Constant(n.type, PAD)), step(j, carried)
    for phi, start, then in ((j, ir.Constant(n.type, 0), following), (carried, first, new)):
        if phi is not None:
            phi.add_incoming(start, before)
            phi.add_incoming(then, loop)
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, n), loop, done)
    builder.position_at_end(done)
    return new


@intrinsic
def squares(typingctx, a, n):
    """The sum over j < n of a[j]^2, n a multiple of PAD."""

    def codegen(context, builder, sig, args):
        a, n = args
        kind, load, _, _ = vector(builder, context.get_value_type(sig.args[0].dtype), PAD)

        def add_square(j, total):
            x = load(a, j)
            return builder.fadd(builder.fmul(x, x, flags=("contract",)), total, flags=("contract",))

        total, width = _over_vectors(builder, n, ir.Constant(kind, [0.0] * PAD), add_square), PAD
        while width > 1:
            width //= 2
            low, high = (
                builder.shuffle_vector(total, total, ir.Constant(ir.VectorType(ir.IntType(32), width), places))
                for places in (list(range(width)), list(range(width, 2 * width)))
            )
            total = builder.fadd(low, high)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return a.dtype(a, n), codegen


def _row(added: bool):
    """The code of to[j] = or += a[j] for j < n, n a multiple of PAD: a row. (What LLVM makes of such a loop is meant for long ones.)"""

    @intrinsic
    def row(typingctx, a, to, n):
        def codegen(context, builder, sig, args):
            a, to, n = args
            _, load, store, _ = vector(builder, context.get_value_type(sig.args[0].dtype), PAD)

            def step(j, _):
                store(builder.fadd(load(to, j), load(a, j)) if added else load(a, j), to, j)

            _over_vectors(builder, n, None, step)
            return context.get_dummy_value()

        return types.void(a, to, n), codegen

    return row


copy_row, add_row = _row(False), _row(True)


def each(function, interleaved: int = 4):
    """The code of to[j] = function(a[j]) for j < n, with `interleaved` vectors under way at a time: what such a function waits for most is
    its own last step, and LLVM by itself takes one vector after another.
    """

    @intrinsic
    def loop(typingctx, a, to, n):
        def codegen(context, builder, sig, args):
            a, to, n = args
            known = context.typing_context.resolve_value_type(function)
            compute = context.get_function(known, known.get_call_type(context.typing_context, (sig.args[0].dtype,), {}))
            context.add_linking_libs(getattr(compute, "libs", ()))
            before = builder.block
            body, done = builder.append_basic_block("body"), builder.append_basic_block("done")
            builder.cbranch(builder.icmp_signed("<", ir.Constant(n.type, 0), n), body, done)
            builder.position_at_end(body)
            j = builder.phi(n.type)
            value = compute(builder, [builder.load(builder.gep(a, [j]))])
            builder.store(value, builder.gep(to, [j]))
            following = builder.add(j, ir.Constant(n.type, 1))
            j.add_incoming(ir.Constant(n.type, 0), before)
            j.add_incoming(following, builder.block)
            again = builder.cbranch(builder.icmp_signed("<", following, n), body, done)
            module, count = builder.module, ir.Constant(ir.IntType(32), interleaved)
            hint = module.add_metadata(["llvm.loop.interleave.count", count])
            name = module.add_metadata([f"loop {len(module.metadata)}", hint])
            name.operands = name, hint  # as LLVM wants it: a loop's name refers to itself
            again.set_metadata("llvm.loop", name)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(a, to, n), codegen

    return loop
