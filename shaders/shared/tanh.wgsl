// tanh of four values. The built-in one may be off by 1e-5, and overflows on some drivers.
// Cephes' tanhf; as device/cpu/tanh.rs.
fn tanh4(x: vec4<f32>) -> vec4<f32> {
    let z = x * x;
    var p = vec4(-5.7049887e-3);
    p = fma(p, z, vec4(2.0639088e-2));
    p = fma(p, z, vec4(-5.3739715e-2));
    p = fma(p, z, vec4(1.3331442e-1));
    p = fma(p, z, vec4(-3.3333283e-1));
    let near = fma(p * z, x, x);
    // At 20 it is 1 to the last bit, and the exponential is still finite.
    let far = sign(x) * (1.0 - 2.0 / (exp(2.0 * min(abs(x), vec4(20.0))) + 1.0));
    return select(far, near, abs(x) < vec4(0.625));
}
