"""Ways to turn the utility of pictures into a gradient to the policy, one a file; all minimise, optax steps outside.

| file | what it needs of the utility | what it moves |
|---|---|---|
| `pathwise` | its derivative | all of the policy |
| `policy_gradient` | its value | LoRA, prompts, difficulty |
| `dpo` | which picture of two has more | LoRA, prompts, difficulty |
| `prompt_ascent` | its derivative | each picture's prompt |
| `golden_noise` | nothing: it follows from the guidance | each picture's noise |

The utility is one function of the pictures and their labels, for all of them (`utility.Utility`): the influence on the
validation loss, a weight network's verdict, or anything else of that signature; higher is better.
"""
