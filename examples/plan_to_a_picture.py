"""Find the actions that lead to a goal picture, in imagination only.

python examples/plan_to_a_picture.py prints the plan and how far the simulator says it led.
"""

import torch

import wfm_posttrain as wp
from wfm_posttrain.plan import ImaginedReturn, LooksLike, SearchConfig, cem
from wfm_posttrain.simulator import ArmEnv, move_bounds
from wfm_tokenizer.video import to_model


def main(samples: int = 24, iterations: int = 3) -> None:
    world = wp.load("builtin:pico-arm-diffusion")
    env = ArmEnv("reach")
    picture, info = env.reset(seed=3)
    seen = to_model(torch.from_numpy(picture).permute(2, 0, 1)[None])
    past = seen.expand(-1, -1, world.past_frames, -1, -1)
    config = SearchConfig(horizon=4, samples=samples, iterations=iterations)
    reward = LooksLike(torch.from_numpy(info["goal_frame"]))
    objective = ImaginedReturn(world, past, reward)
    plan = cem(objective, move_bounds(), config, generator=torch.Generator().manual_seed(0))
    for action in plan.actions:
        env.step(action.numpy())
    print(f"{info['distance']:.3f} m from the goal before, {env.distance():.3f} m after")
    env.close()


if __name__ == "__main__":
    main()
