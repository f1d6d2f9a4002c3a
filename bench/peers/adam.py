"""Adam of the part `training`, for JAX and Python MLX."""


def adam(xp, w, gradients, state, rate=1e-3, b1=0.9, b2=0.999, eps=1e-8, eps_root=1e-15):
    """A step with Polaris' defaults, whose root has an epsilon of its own; `xp` is jax.numpy or mlx.core."""
    mu, nu, count = state
    count = count + 1
    mu = {name: (1 - b1) * g + b1 * mu[name] for name, g in gradients.items()}
    nu = {name: (1 - b2) * xp.square(g) + b2 * nu[name] for name, g in gradients.items()}

    def update(name):
        mean, square = mu[name] / (1 - b1**count), nu[name] / (1 - b2**count)
        return w[name] - rate * mean / (xp.sqrt(square + eps_root) + eps)

    return {name: update(name) for name in w}, (mu, nu, count)
