"""Small matrix products for one core: register tiles written in LLVM IR, looped over in Numba.

BLAS is built for large matrices; at 20 x 50 times 50 x 50 it reaches a third of what these tiles do (they need no packing and no call).
Every entry of a product is one chain of fused multiply-adds in the order of k, whatever tile it falls into: results do not depend on
shapes around it, threads, or anything else.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# (Numba's stubs describe neither its decorators' options nor what its intrinsics take.)

import numba as nb
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

PAD = 8  # rows of all matrices here are padded to a multiple of it
ROWS = 4
BITS = 256  # of a vector


@intrinsic
def pointer(typingctx, array, offset):
    """&array.flat[offset] of a C-contiguous array, or what lies `offset` entries behind a pointer."""
    sig = types.CPointer(array.dtype)(array, types.intp)

    def codegen(context, builder, sig, args):
        given, data = sig.args[0], args[0]
        if not isinstance(given, types.CPointer):
            data = context.make_array(given)(context, builder, data).data
        return builder.gep(data, [args[1]])

    return sig, codegen


@intrinsic
def number(typingctx, pointer, value):
    """A number of the type that the pointer points to."""

    def codegen(context, builder, sig, args):
        return context.cast(builder, args[1], sig.args[1], sig.return_type)

    return pointer.dtype(pointer, value), codegen


@intrinsic
def lanes_of(typingctx, pointer):
    """How many of these numbers a vector holds."""

    def codegen(context, builder, sig, args):
        return context.get_constant(types.intp, BITS // sig.args[0].dtype.bitwidth)

    return types.intp(pointer), codegen


def apart(function):
    """A compiled function as a call that stays one: takes its arguments as a tuple. (Inlined everywhere, products compile for a minute.)"""

    @intrinsic
    def call(typingctx, arguments):
        given = tuple(types.unliteral(a) for a in arguments)
        its = typingctx.resolve_function_type(types.Dispatcher(function), given, {})

        def codegen(context, builder, sig, args):
            compiled = function.overloads[its.args]
            context.add_linking_libs([compiled.library])
            values = [
                context.cast(builder, value, was, wanted)
                for value, was, wanted in zip(
                    cgutils.unpack_tuple(builder, args[0]), sig.args[0], its.args, strict=True
                )
            ]
            callee = context.declare_function(builder.module, compiled.fndesc)
            _, result = context.call_conv.call_function(
                builder, callee, its.return_type, its.args, values, attrs=("noinline",)
            )
            return result

        return its.return_type(arguments), codegen

    return call


def vector(builder, element, lanes):
    """(type, load, store, splat) of vectors of `lanes` such elements, for code written in LLVM IR."""
    kind = ir.VectorType(element, lanes)
    index, undefined = ir.IntType(32), ir.Constant(kind, ir.Undefined)

    def load(pointer, offset):
        at = builder.gep(pointer, [offset])
        return builder.load(builder.bitcast(at, kind.as_pointer()), align=4)

    def store(value, pointer, offset):
        at = builder.gep(pointer, [offset])
        builder.store(value, builder.bitcast(at, kind.as_pointer()), align=4)

    def splat(scalar):
        first = builder.insert_element(undefined, scalar, ir.Constant(index, 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(index, lanes), [0] * lanes))

    return kind, load, store, splat


def _tile(rows: int, vectors: int):
    """The code of C[0:rows, 0:vectors] (+)= sum over k of A[row, k] B[k, :]; widths in vectors."""

    @intrinsic
    def tile(typingctx, a, a_row, a_k, b, ldb, c, ldc, K, accumulate):
        lanes = BITS // a.dtype.bitwidth

        def codegen(context, builder, sig, args):
            a, a_row, a_k, b, ldb, c, ldc, K, accumulate = args
            kind, load, store, splat = vector(builder, context.get_value_type(sig.args[0].dtype), lanes)
            size = K.type
            number = lambda n: ir.Constant(size, n)  # noqa: E731
            place = lambda r, v: builder.add(builder.mul(number(r), ldc), number(v * lanes))  # noqa: E731
            grid = [(r, v) for r in range(rows) for v in range(vectors)]
            zero = ir.Constant(kind, [0.0] * lanes)

            before = builder.block
            resume, loop, done = (builder.append_basic_block(name) for name in ("resume", "loop", "done"))
            builder.cbranch(accumulate, resume, loop)
            builder.position_at_end(resume)
            old = {rv: load(c, place(*rv)) for rv in grid}
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(size)
            k.add_incoming(number(0), before)
            k.add_incoming(number(0), resume)
            sums = {rv: builder.phi(kind) for rv in grid}
            for rv, total in sums.items():
                total.add_incoming(zero, before)
                total.add_incoming(old[rv], resume)
            row_of_b = builder.mul(k, ldb)
            bs = [load(b, builder.add(row_of_b, number(v * lanes))) for v in range(vectors)]
            new = {}
            for r in range(rows):
                at = builder.add(builder.mul(number(r), a_row), builder.mul(k, a_k))
                left = splat(builder.load(builder.gep(a, [at])))
                for v in range(vectors):
                    term = builder.fmul(left, bs[v], flags=("contract",))
                    new[r, v] = builder.fadd(term, sums[r, v], flags=("contract",))
            following = builder.add(k, number(1))
            k.add_incoming(following, loop)
            for rv, total in sums.items():
                total.add_incoming(new[rv], loop)
            builder.cbranch(builder.icmp_signed("<", following, K), loop, done)
            builder.position_at_end(done)
            for rv in grid:
                store(new[rv], c, place(*rv))
            return context.get_dummy_value()

        return types.void(a, a_row, a_k, b, ldb, c, ldc, K, accumulate), codegen

    return tile


_4x3, _4x2, _4x1 = (_tile(ROWS, v) for v in (3, 2, 1))
_1x3, _1x2, _1x1 = (_tile(1, v) for v in (3, 2, 1))


@nb.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _product(A, a_row, a_k, B, ldb, C, ldc, M, N, K, accumulate):
    lanes, column = lanes_of(A), 0
    while column < N:
        left = (N - column) // lanes
        vectors = (
            3 if left == 3 or left >= 5 else min(left, 2)
        )  # never ends on a lone vector, which waits for its own sums
        row = 0
        while row < M:
            pa, pb, pc = pointer(A, row * a_row), pointer(B, column), pointer(C, row * ldc + column)
            if row + ROWS <= M:
                if vectors == 3:
                    _4x3(pa, a_row, a_k, pb, ldb, pc, ldc, K, accumulate)
                elif vectors == 2:
                    _4x2(pa, a_row, a_k, pb, ldb, pc, ldc, K, accumulate)
                else:
                    _4x1(pa, a_row, a_k, pb, ldb, pc, ldc, K, accumulate)
                row += ROWS
            else:
                if vectors == 3:
                    _1x3(pa, a_row, a_k, pb, ldb, pc, ldc, K, accumulate)
                elif vectors == 2:
                    _1x2(pa, a_row, a_k, pb, ldb, pc, ldc, K, accumulate)
                else:
                    _1x1(pa, a_row, a_k, pb, ldb, pc, ldc, K, accumulate)
                row += 1
        column += vectors * lanes


_call_product = apart(_product)


@nb.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
def product(A, a_row, a_k, B, ldb, C, ldc, M, N, K, accumulate):
    """C = A B, or C += A B if `accumulate`; A (M, K), B (K, N), C (M, N) begin at these pointers.

    A[m, k] is a_row m + a_k k behind A, so (1, width) takes A transposed; B and C have row strides ldb and ldc. N is a multiple of PAD.
    """
    _call_product((A, a_row, a_k, B, ldb, C, ldc, M, N, K, accumulate))
